"""Estimates by a real server: planted failures of graders, and the estimate beside a job."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import openai
import pytest
from typer.testing import CliRunner

from iro_server.cli.main import app
from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, start_job, upload, wait_for
from tests.iro_server.graders.judge import answers_in, judge, ranking_by

ROWS = b"".join(b'{"messages": [{"role": "user", "content": "say %d"}], "n": %d}\n' % (n, n) for n in range(40))
TEXTS = b"".join(json.dumps({"prompt": f"Once {n}"}).encode() + b"\n" for n in range(12))
SHORT = {"max_tokens": 12}
PLANTED = {
    "go": "return sample['output_text'].count('z')",
    "constant_reward": "return 0",
    "nothing_to_choose_from": "return item['n']",
    "flaky_grader": "import random; return random.random()",
    "more_rollouts": "return float(item['n'] == 7 and sample['output_text'].count('z') % 2) + item['n']",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(settings_for(tmp_path_factory.mktemp("data"), python_graders="unsafe"), ByteEngine()) as client:
        yield client


def body_of(client, body: str | None = None, grader=None, rows: bytes = ROWS, **iro) -> dict:
    python = {"type": "python", "name": "mine", "source": f"def grade(sample, item):\n    {body}\n"}
    reinforcement = {"grader": grader or python, "iro": SHORT | iro}
    method = {"type": "reinforcement", "reinforcement": reinforcement}
    return {"model": "bytes", "training_file": upload(client, rows), "method": method, "seed": 1}


def create(client, body: dict) -> dict:
    return client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object)


def ended_estimate(client, id: str) -> dict:
    def look() -> dict | None:
        record = client.get(f"/fine_tuning/jobs/estimate/{id}", cast_to=object)
        return record if record["status"] in ("completed", "failed", "canceled") else None

    return wait_for(look)


def estimated(client, body: dict) -> dict:
    record = ended_estimate(client, create(client, body)["id"])
    assert record["status"] == "completed", record
    return record["result"]


@pytest.mark.parametrize("word", PLANTED)
def test_a_planted_trouble_is_told_before_the_job(client, word):
    result = estimated(client, body_of(client, PLANTED[word]))
    assert result["verdict"] == word, result
    assert result["prompts"] == 24 and result["completions"] == 24 * 8 and len(result["samples"]) == 3
    assert result["message"] and result["grader"]["graded_twice"] == 48


def test_the_numbers_of_an_estimate_are_those_of_its_rollouts(client):
    result = estimated(client, body_of(client, PLANTED["go"]))
    assert result["reward"]["mean"] == pytest.approx(6, abs=0.5)  # of 12 bytes every second is a z
    assert result["reward"]["within_prompt_variance"] == pytest.approx(3, abs=1)
    gain = result["expected_gain"]
    assert gain["mean"] == pytest.approx(result["reward"]["best_of"]["8"] - result["reward"]["mean"])
    assert 1.5 < gain["low"] < gain["mean"] < gain["high"] < 3.5  # of 8 binomial draws: 1.42 deviations of 1.73
    rewards = [sample["reward"] for sample in result["samples"]]
    assert rewards == sorted(rewards) and rewards[0] < rewards[2]
    assert [sample["text"].count("z") for sample in result["samples"]] == rewards
    assert result["estimate_cost"]["base_tokens"] == 24 * 8 * 12 and result["cost"]["base_tokens"] > 0


RANK = {"type": "score_model", "name": "rank", "model": "judge", "ranking": {}}
RANK["input"] = [{"role": "user", "content": "Which answer to {{ item.n }} has the most z?"}]


def test_a_judge_that_ranks_takes_one_call_for_a_prompt_and_is_asked_again_in_another_order(client):
    with judge(ranking_by(lambda text: text.count("z"))) as (url, requests):
        result = estimated(client, body_of(client, grader={**RANK, "base_url": url}))
    assert result["verdict"] == "go" and result["reward"]["mean"] == pytest.approx(0.5)
    assert len(requests) == result["estimate_cost"]["grader_calls"] == 24 * 2
    assert result["grader"]["disagreement"] == 0 and result["grader"]["graded_twice"] == 24 * 8
    assert result["cost"]["grader_calls"] * 8 <= result["cost"]["completions"]


def test_a_judge_that_prefers_a_place_is_flaky(client):
    with judge(lambda body: json.dumps({"ranking": [*map(int, answers_in(body))]})) as (url, _):
        result = estimated(client, body_of(client, grader={**RANK, "base_url": url}))
    assert result["verdict"] == "flaky_grader" and "contradicts itself" in result["message"]


@pytest.mark.slow(4)
def test_the_same_seed_samples_the_same(client):
    body = body_of(client, PLANTED["go"])
    first, second = estimated(client, body), estimated(client, body)
    assert first["reward"] == second["reward"] and first["samples"] == second["samples"]


@pytest.mark.parametrize("body", ["return float('nan')", "return item['missing']"])
def test_a_grader_that_gives_no_reward_is_quoted(client, body):
    result = estimated(client, body_of(client, body))
    assert (result["verdict"], result["ungradable_share"], result["expected_gain"]) == ("flaky_grader", 1, None)
    assert result["samples"][0]["error"] and result["samples"][0]["error"] in result["message"]


def formatted(client, format: dict, rows: bytes = ROWS) -> dict:
    """A job whose answers have the format."""
    body = body_of(client, PLANTED["go"], rows=rows)
    body["method"]["reinforcement"]["response_format"] = format
    return body


@pytest.mark.parametrize("rows", [ROWS, TEXTS], ids=["conversations", "texts"])
def test_completions_are_held_to_a_response_format_as_those_of_the_job(client, rows):
    format = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"enum": ["a", "zz"]}}}
    result = estimated(client, formatted(client, format, rows))
    assert result["reward"]["mean"] == 2.0
    assert {(sample["text"], sample["error"]) for sample in result["samples"]} == {('"zz"', None)}


@pytest.mark.parametrize(
    ("adjusts", "format"),
    [
        (False, {"type": "json_object"}),
        (True, {"type": "json_schema", "json_schema": {"name": "nothing", "schema": {"not": {}}}}),
    ],
)
def test_a_response_format_that_completions_cannot_be_held_to_is_a_constant_reward(tmp_path, adjusts, format):
    engine = ByteEngine()
    engine.info = replace(engine.info, adjusts=adjusts)
    with serving(settings_for(tmp_path, python_graders="unsafe"), engine) as client:
        result = estimated(client, formatted(client, format))
    assert result["verdict"] == "constant_reward" and "always 0" in result["message"]
    assert "response_format" in result["samples"][0]["error"]


def test_calls_are_graded_as_those_of_the_job(tmp_path):
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": city}}]
    row = {"messages": [{"role": "user", "content": "hi"}], "tools": tools}
    rows = b"".join(json.dumps(row | {"n": n}).encode() + b"\n" for n in range(12))
    says = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    body = "return float(sample['output_tools'] == [{'type': 'function', 'function': {'name': 'weather', "
    body += "'arguments': '{\"city\": \"Oslo\"}'}}])"
    engine = ByteEngine(script=says, noise=0.0, length=4096)
    with serving(settings_for(tmp_path, python_graders="unsafe"), engine) as client:
        result = estimated(client, body_of(client, body, rows=rows, max_tokens=100))
    assert result["reward"]["mean"] == 1.0, result["samples"]


def test_texts_are_continued_as_they_stand(client):
    assert estimated(client, body_of(client, PLANTED["go"], rows=TEXTS))["prompts"] == 12


def test_a_slow_grader_ends_the_estimate_in_time_and_shows_in_the_cost(tmp_path):
    settings = settings_for(tmp_path, python_graders="unsafe", estimate_seconds=2.0)
    with serving(settings, ByteEngine()) as client:
        source = "import time; time.sleep(0.2); return sample['output_text'].count('z')"
        result = estimated(client, body_of(client, source))
    assert result["verdict"] == "more_rollouts" and "slow" in result["message"]
    assert 1 <= result["prompts"] < 3 and result["grader"]["seconds_per_call"] >= 0.2
    assert result["cost"]["seconds"] >= 0.2 * result["cost"]["grader_calls"]


def test_an_engine_too_slow_for_an_answer_ends_the_estimate_with_what_to_set(tmp_path):
    with serving(settings_for(tmp_path, estimate_seconds=1.0), ByteEngine(seconds_per_token=0.2)) as client:
        estimate = ended_estimate(client, create(client, body_of(client, grader=GRADER))["id"])
    assert estimate["status"] == "failed" and estimate["error"]["code"] == "sampling_failed"
    assert "ReadTimeout" in estimate["error"]["message"] and "Set max_tokens" in estimate["error"]["message"]


@pytest.mark.slow(10)
def test_a_job_is_estimated_beside_it_and_starts_in_any_case(tmp_path, database_url):
    settings = settings_for(tmp_path, database_url=database_url, job_estimates=True)
    with serving(settings, ByteEngine()) as client:
        id = start_job(client, GRADER | {"reference": "never"}, **SHORT)
        assert ended(client, id).status == "succeeded"

        def look():
            events = client.fine_tuning.jobs.list_events(id, limit=100)
            return [event for event in events if event.message.startswith("Estimate: ")]

        (event,) = wait_for(look)
    assert event.level == "warn" and "reward is always 0" in event.message
    assert event.data["verdict"] == "constant_reward" and len(event.data["samples"]) == 3


def test_an_estimate_is_checked_as_a_job_is_and_belongs_to_its_project(tmp_path):
    settings = settings_for(tmp_path, estimate_concurrency=0, project_estimates=1)
    sessions = open_database(settings)
    with serving(settings, ByteEngine()) as client:
        ours, theirs = (
            client.with_options(api_key=keys.create(sessions, name, name)[1]) for name in ("ours", "theirs")
        )
        body = body_of(ours, grader=GRADER)
        with pytest.raises(openai.NotFoundError):
            create(theirs, body)  # whose file it is not
        with pytest.raises(openai.BadRequestError) as refused:
            create(ours, body_of(ours, grader=GRADER | {"operation": "is"}))
        assert refused.value.param == "method.reinforcement.grader.operation"
        made = create(ours, body)
        with pytest.raises(openai.NotFoundError):
            theirs.get(f"/fine_tuning/jobs/estimate/{made['id']}", cast_to=object)
        with pytest.raises(openai.RateLimitError):
            create(ours, body)
        url = f"{client.base_url}fine_tuning/jobs/estimate/{made['id']}"
        shown = httpx.get(url, headers={"Authorization": f"Bearer {ours.api_key}"}).json()
    assert shown == made and (shown["status"], shown["result"], shown["job_id"]) == ("queued", None, None)


@pytest.mark.slow(9)
def test_the_command_says_what_to_change(client, tmp_path, monkeypatch):
    monkeypatch.setattr("iro_server.cli.estimate.POLL", 0.1)
    train, grader = tmp_path / "train.jsonl", tmp_path / "grader.py"
    train.write_bytes(ROWS)
    grader.write_text("def grade(sample, item):\n    return 0\n")
    command = ["estimate", str(train), str(grader), "--max-tokens", "6", "--url", str(client.base_url)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and done.output.startswith("constant_reward: The reward is always 0"), done.output
    assert train.name not in [file.filename for file in client.files.list()]
    grader.write_text("def grade(sample, item):\n    return sample['output_text'].count('z')\n")
    done = CliRunner().invoke(app, [*command, "--epochs", "1", "rollouts_per_prompt=16"])
    assert done.exit_code == 0 and done.output.startswith("go: Expected gain +"), done.output
    done = CliRunner().invoke(app, [*command, "max_token=6"])
    assert done.exit_code == 2 and "Did you mean method.reinforcement.iro.max_tokens?" in done.output, done.output
