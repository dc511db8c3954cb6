"""/v1/evals by the official client: what runs come to, what is refused, who sees them, and what a killed server
leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import openai
import pytest

from iro_server.engines.ports import free_port
from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import (
    COUNTED,
    CRITERIA,
    CUSTOM,
    SAYS_Z,
    ended_run,
    new_eval,
    output_items,
    run_eval,
    sampled,
)
from tests.iro_server.api.serving import GRADER, aligned, serving, settings_for, wait_for
from tests.iro_server.api.test_tools import SAYS, TOOLS

SERVE = (
    "import sys; from iro_server.settings import Settings; from tests.iro_server.api.test_evals import serve_slowly; "
)
SERVE += "serve_slowly(Settings.model_validate_json(sys.argv[1]))"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return settings_for(tmp_path_factory.mktemp("data"), python_graders="unsafe", max_graded_bytes=1000)


@pytest.fixture(scope="module")
def client(settings):
    with serving(settings, ByteEngine()) as client:
        yield client


def refusal(call) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        call()
    return error.value


def test_each_criterion_grades_each_item_and_the_counts_are_the_items(client):
    eval_id = new_eval(client)
    run = run_eval(client, eval_id, sampled(40))
    items = output_items(client, eval_id, run.id)
    assert run.status == "completed" and [item["datasource_item_id"] for item in items] == [*range(40)]
    for number, criterion in enumerate(run.per_testing_criteria_results):
        results = [item["results"][number] for item in items if item["results"]]
        assert criterion.testing_criteria == results[0]["name"] == CRITERIA[number]["name"]
        assert criterion.passed == sum(result["passed"] for result in results) > 0
        errored = sum("error" in result for result in results)
        assert (criterion.errored, criterion.failed) == (errored, 40 - errored - criterion.passed)
    statuses = [item["status"] for item in items]
    counts = run.result_counts
    assert (counts.total, counts.passed) == (40, statuses.count("pass"))
    assert (counts.failed, counts.errored) == (statuses.count("fail"), statuses.count("error"))
    assert 0 < counts.passed < 40 and counts.failed
    (usage,) = run.per_model_usage
    assert (usage.run_model_name, usage.invocation_count) == ("bytes", 40)
    assert usage.completion_tokens == sum(item["sample"]["usage"]["completion_tokens"] for item in items)
    texts = [item["sample"]["output"][0]["content"] for item in items]
    for item, text in zip(items, texts, strict=True):
        graded_length = len(item["datasource_item"]["q"])
        counted = item["results"][2]
        assert counted.get("error") if "z" not in text else counted["score"] == graded_length / text.count("z")


def test_an_item_is_sampled_as_a_chat_request_of_its_seed_is(client):
    eval_id = new_eval(client, [SAYS_Z])
    run = run_eval(client, eval_id, sampled(3))
    for item in output_items(client, eval_id, run.id):
        messages, seed = item["sample"]["input"], item["sample"]["seed"]
        assert messages == [{"role": "user", "content": f"say {item['datasource_item']['q']}"}]
        chat = client.chat.completions.create(model="bytes", messages=messages, seed=seed, max_tokens=6)
        assert chat.choices[0].message.content == item["sample"]["output"][0]["content"]


def test_an_aligned_model_searches_as_it_does_in_chat(client, settings):
    eval_id, name = new_eval(client, [SAYS_Z | {"reference": "zzzz"}]), aligned(settings, "loves-z")
    base, steered = (run_eval(client, eval_id, sampled(20, model)) for model in ("bytes", name))
    assert steered.per_testing_criteria_results[0].passed > base.per_testing_criteria_results[0].passed
    item = output_items(client, eval_id, steered.id)[0]
    chat = client.chat.completions.create(
        model=name, messages=item["sample"]["input"], seed=item["sample"]["seed"], max_tokens=6
    )
    assert chat.choices[0].message.content == item["sample"]["output"][0]["content"]


def test_stored_samples_are_graded_as_they_are(client):
    rows = [{"item": {"q": "a"}, "sample": {"output_text": "zz"}}, {"item": {"q": "b"}, "sample": {"output_text": "y"}}]
    file = client.files.create(file=("items.jsonl", "\n".join(map(json.dumps, rows)).encode()), purpose="evals")
    eval_id = new_eval(client, [SAYS_Z, COUNTED])
    run = client.evals.runs.create(eval_id, data_source={"type": "jsonl", "source": {"type": "file_id", "id": file.id}})
    client.files.delete(file.id)  # the run has its items
    run = ended_run(client, eval_id, run.id)
    first, second = output_items(client, eval_id, run.id)
    assert [result["score"] for result in first["results"]] == [1, 0.5] and first["status"] == "fail"
    assert second["status"] == "error" and "division by zero" in second["results"][1]["error"]
    assert (run.model, run.per_model_usage, run.result_counts.errored) == ("", [], 1)


def test_messages_come_from_the_item_where_the_run_refers_to_it(client):
    schema = {"type": "object", "properties": {"asked": {"type": ["array", "string"]}}}
    made = client.evals.create(data_source_config={"type": "custom", "item_schema": schema}, testing_criteria=[SAYS_Z])
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    content = [{"item": {"asked": asked}}, {"item": {"asked": "plainly"}}, {"item": {}}]
    source = {"type": "responses", "model": "bytes", "source": {"type": "file_content", "content": content}}
    source["input_messages"] = {"type": "item_reference", "item_reference": "item.asked"}
    source["sampling_params"] = {"text": {"format": {"type": "text"}}, "max_completion_tokens": 2, "tools": []}
    run = run_eval(client, made.id, source)
    items = output_items(client, made.id, run.id)
    assert items[0]["sample"]["input"] == asked
    assert items[1]["sample"]["input"] == [{"role": "user", "content": "plainly"}]
    assert items[2]["status"] == "error" and "item.asked" in items[2]["sample"]["error"]["message"]
    assert run.result_counts.errored == 1 == run.result_counts.total - 2


@pytest.mark.parametrize("kind", ["completions", "responses"])
def test_calls_of_tools_are_graded(tmp_path, kind):
    """The tools of a run are a chat's, or in the flat shape of a response's."""
    tools = [{"type": "function"} | tool["function"] for tool in TOOLS] if kind == "responses" else TOOLS
    called = {"type": "string_check", "name": "city", "operation": "like", "reference": "Oslo"}
    called["input"] = "{{sample.output_tools[0].function.arguments}}"
    with serving(settings_for(tmp_path), ByteEngine(script=SAYS, noise=0.0, length=4096)) as client:
        eval_id = new_eval(client, [called])
        params = {"tools": tools, "max_completion_tokens": 200, "seed": 1}
        run = run_eval(client, eval_id, sampled(2, **params) | {"type": kind})
        assert (run.result_counts.passed, run.result_counts.errored) == (2, 0)


def test_a_judge_is_asked_through_this_server_and_its_tokens_are_counted(client):
    judge = {"type": "score_model", "name": "judge", "model": "bytes", "range": [0, 1]}
    judge["input"] = [{"role": "user", "content": "rate {{sample.output_text}}"}]
    eval_id = new_eval(client, [judge])
    run = run_eval(client, eval_id, sampled(2))
    assert run.result_counts.errored == 2  # the byte engine answers with no number
    (usage,) = run.per_model_usage
    assert usage.invocation_count == 4 and usage.total_tokens > usage.prompt_tokens + usage.completion_tokens


def test_a_run_reads_fields_that_an_item_has(client):
    reads = {"type": "string_check", "name": "reads", "operation": "eq", "input": "{{sample.output_text}}"}
    eval_id = new_eval(client, [reads | {"reference": "{{item.nope}}"}])
    with pytest.raises(openai.BadRequestError, match=r"criterion 'reads' reads item\.nope, a field") as no:
        client.evals.runs.create(eval_id, data_source=sampled(2))
    assert no.value.param == "data_source.source"
    asks = sampled(2)
    asks["input_messages"] = {"type": "template", "template": [{"role": "user", "content": "{{item.zzz}}"}]}
    with pytest.raises(openai.BadRequestError, match=r"the messages read item\.zzz, a field") as no:
        client.evals.runs.create(new_eval(client), data_source=asks)
    assert no.value.param == "data_source.input_messages"


def test_a_mistake_is_refused_where_it_stands(client):
    create, eval_id = client.evals.create, new_eval(client)

    def param(call) -> tuple[int, str | None]:
        error = refusal(call)
        return error.status_code, error.param

    def criterion(**changes):
        return lambda: create(data_source_config=CUSTOM, testing_criteria=[SAYS_Z, SAYS_Z | changes])

    def run(**changes):
        return lambda: client.evals.runs.create(eval_id, data_source=sampled(2) | changes)

    assert param(criterion(operation="is")) == (400, "testing_criteria.1.operation")
    assert param(criterion(type="human")) == (400, "testing_criteria.1.type")
    assert param(criterion(pass_threshold="high")) == (400, "testing_criteria.1.pass_threshold")
    assert param(criterion(input="{{ item.a | upper }}")) == (400, "testing_criteria.1.input")
    judge = {"type": "score_model", "name": "r", "model": "bytes", "input": [{"role": "user", "content": "x"}]}
    assert param(criterion(**judge, ranking={}, operation=None, reference=None)) == (400, "testing_criteria.1.ranking")
    mixed = {"type": "logs", "item_schema": {"type": "object"}}
    assert param(lambda: create(data_source_config=mixed, testing_criteria=[SAYS_Z])) == (400, "data_source_config")
    assert param(run(source={"type": "responses"})) == (400, "data_source.source.type")
    assert param(run(source={"type": "stored_completions", "metadata": {"no": "such"}})) == (400, "data_source.source")
    broken = {"type": "custom", "item_schema": {"type": "colour"}}
    assert (
        param(lambda: create(data_source_config=broken, testing_criteria=[SAYS_Z]))[1]
        == "data_source_config.item_schema"
    )
    closed = {"type": "custom", "item_schema": {"properties": {"q": {}}, "additionalProperties": False}}
    reads_x = SAYS_Z | {"input": "{{ item.x }}"}
    contradicted = refusal(lambda: create(data_source_config=closed, testing_criteria=[reads_x]))
    assert contradicted.param == "testing_criteria.0" and "item.x" in contradicted.message
    assert create(data_source_config=closed, testing_criteria=[SAYS_Z | {"input": "{{ item.q }}"}]).id
    assert param(run(model="gpt-4o")) == (404, "data_source.model")
    assert "Did you mean max_completion_tokens?" in refusal(run(sampling_params={"max_tokens": 3})).message
    assert param(run(sampling_params={"temperature": 3}))[1] == "data_source.sampling_params.temperature"
    named = param(run(sampling_params={"tools": [{"type": "web_search"}]}))[1]
    assert named == "data_source.sampling_params.tools.0.type"
    assert param(run(source={"type": "file_id", "id": "file-0"})) == (404, "data_source.source.id")
    wrong = run(source={"type": "file_content", "content": [{"item": {"q": "a"}}, {"item": {"q": 1}}]})
    assert "$[1].q" in refusal(wrong).message and param(wrong)[1] == "data_source.source.content"
    image = {"type": "template", "template": [{"role": "user", "content": {"type": "input_image", "image_url": "u"}}]}
    assert param(run(input_messages=image))[0] == 400


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"q": {"$ref": "#/definitions/Q"}}, "definitions": {"Q": {"type": "string"}}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/I"}
        | {"definitions": {"I": {"properties": {"q": {"type": "string"}}}}},
        {"properties": {"q": {"type": "string"}, "part": {"$ref": "#"}}},
        True,
    ],
    ids=["definitions", "draft 7", "itself", "anything"],
)
def test_an_item_schema_may_refer_to_its_own_parts(client, schema):
    config = {"type": "custom", "item_schema": schema}
    eval_id = client.evals.create(data_source_config=config, testing_criteria=[SAYS_Z]).id
    rows = [{"item": {"q": "a", "part": {"q": part}}, "sample": {"output_text": "z"}} for part in ("b", "c")]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    assert run_eval(client, eval_id, source).result_counts.passed == 2
    rows[1]["item"]["q"] = 1
    if schema is not True:
        wrong = refusal(lambda: client.evals.runs.create(eval_id, data_source=source))
        assert (wrong.status_code, wrong.param) == (400, "data_source.source.content") and "$[1].q" in wrong.message


def test_a_run_that_is_canceled_keeps_what_is_graded_and_goes_no_further(settings):
    slow = {
        "type": "python",
        "name": "slow",
        "timeout": 60,
        "source": "import time\ndef grade(*_): time.sleep(.1); return 1",
    }
    with serving(settings, ByteEngine()) as client:
        eval_id = new_eval(client, [slow])
        run = client.evals.runs.create(eval_id, data_source=sampled(64))
        wait_for(lambda: client.evals.runs.retrieve(run.id, eval_id=eval_id).result_counts.total)
        canceled = client.evals.runs.cancel(run.id, eval_id=eval_id)
        assert canceled.status == "canceled" and 0 < canceled.result_counts.total < 64
        again = refusal(lambda: client.evals.runs.cancel(run.id, eval_id=eval_id))
        assert again.code == "run_ended"
        client.evals.delete(eval_id)
        assert refusal(lambda: client.evals.runs.retrieve(run.id, eval_id=eval_id)).status_code == 404


def test_the_report_is_a_page_that_escapes_what_models_say(client):
    eval_id = new_eval(client, [SAYS_Z])
    content = [{"item": {"q": "a"}, "sample": {"output_text": "<script>alert(1)</script>"}}]
    run = run_eval(client, eval_id, {"type": "jsonl", "source": {"type": "file_content", "content": content}})
    page = httpx.get(run.report_url)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "&lt;script&gt;" in page.text and "<script>" not in page.text and "says z" in page.text


@pytest.mark.slow(7)
def test_an_eval_belongs_to_its_project_and_counts_against_its_quotas(tmp_path, database_url):
    quotas = {"project_evals": 1, "project_eval_runs": 1, "project_eval_items": 5, "eval_items": 4}
    settings = settings_for(tmp_path, database_url=database_url, **quotas)
    sessions = open_database(settings)
    secrets = [keys.create(sessions, name)[1] for name in ("ours", "theirs")]
    with serving(settings, ByteEngine()) as client:
        ours, theirs = (client.with_options(api_key=secret) for secret in secrets)
        eval_id = new_eval(ours, [SAYS_Z])
        assert refusal(lambda: new_eval(ours)).code == "insufficient_quota"
        assert refusal(lambda: ours.evals.runs.create(eval_id, data_source=sampled(5))).code == "too_many_items"
        run = run_eval(ours, eval_id, sampled(3))
        assert refusal(lambda: ours.evals.runs.create(eval_id, data_source=sampled(3))).code == "insufficient_quota"
        item = ours.evals.runs.output_items.list(run.id, eval_id=eval_id).data[0].id
        calls = [
            lambda c: c.evals.retrieve(eval_id),
            lambda c: c.evals.update(eval_id, name="mine"),
            lambda c: c.evals.runs.create(eval_id, data_source=sampled(1)),
            lambda c: c.evals.runs.list(eval_id),
            lambda c: c.evals.runs.retrieve(run.id, eval_id=eval_id),
            lambda c: c.evals.runs.cancel(run.id, eval_id=eval_id),
            lambda c: c.evals.runs.output_items.list(run.id, eval_id=eval_id),
            lambda c: c.evals.runs.output_items.retrieve(item, eval_id=eval_id, run_id=run.id),
            lambda c: c.get(f"/evals/{eval_id}/runs/{run.id}/report", cast_to=str),
            lambda c: c.evals.runs.delete(run.id, eval_id=eval_id),
            lambda c: c.evals.delete(eval_id),
        ]
        for call in calls:
            assert refusal(lambda call=call: call(theirs)).status_code == 404
        assert not theirs.evals.list().data and ours.evals.retrieve(eval_id).name == "letters"
        mixed = new_eval(theirs, [SAYS_Z])  # another's run is not under an eval of one's own either
        assert refusal(lambda: theirs.evals.runs.retrieve(run.id, eval_id=mixed)).status_code == 404


def serve_slowly(settings) -> None:
    """A server process whose model takes its time."""
    import uvicorn

    from iro_server.api.app import Server, create_app

    app = create_app(settings, ByteEngine(seconds_per_token=0.005))
    Server(uvicorn.Config(app, port=settings.port, log_level="warning"), settings.drain).run()


@contextmanager
def server_process(settings):
    process = subprocess.Popen([sys.executable, "-c", SERVE, settings.model_dump_json()])
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{settings.port}/v1", api_key="none", max_retries=0)

    def up() -> bool:
        try:
            return bool(client.models.list().data)
        except openai.APIConnectionError:
            return False

    try:
        wait_for(up)
        yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_an_eval_of_200_items_survives_kill_9_and_comes_to_the_same_results(tmp_path, client):
    settings = settings_for(tmp_path, python_graders="unsafe", port=free_port(), lease=1.0)
    with server_process(settings) as (process, killed):
        eval_id = new_eval(killed)
        run = killed.evals.runs.create(eval_id, data_source=sampled(200))
        wait_for(lambda: killed.evals.runs.retrieve(run.id, eval_id=eval_id).result_counts.total > 30)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with server_process(settings) as (_, restarted):
        before = restarted.evals.runs.retrieve(run.id, eval_id=eval_id)
        assert before.status == "in_progress" and 30 < before.result_counts.total < 200
        resumed = ended_run(restarted, eval_id, run.id)
        resumed_items = output_items(restarted, eval_id, run.id)
    calm_id = new_eval(client)
    calm = run_eval(client, calm_id, sampled(200))
    assert resumed_items == output_items(client, calm_id, calm.id) and len(resumed_items) == 200
    fields = ("status", "result_counts", "per_testing_criteria_results", "per_model_usage")
    assert [getattr(resumed, name) for name in fields] == [getattr(calm, name) for name in fields]


def test_braces_in_code_of_a_part_of_a_multi_grader_are_no_template(tmp_path):
    code = "def grade(sample, item):\n    return len('{{item.zzz}}')\n"
    parts = {"code": {"type": "python", "name": "code", "source": code}, "same": GRADER}
    multi = {"type": "multi", "name": "m", "graders": parts, "calculate_output": "code + same"}
    config = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    content = [{"item": {"a": "b"}, "sample": {"output_text": "z"}}]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    with serving(settings_for(tmp_path, python_graders="unsafe"), ByteEngine()) as client:
        made = client.evals.create(data_source_config=config, testing_criteria=[multi])
        assert client.evals.runs.create(made.id, data_source=source).status == "queued"
