"""How an eval's run asks its model: for how long, for whom, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from sqlalchemy import select, update

from iro_server.graders.asking import Asker
from iro_server.settings import Settings
from iro_server.store import keys
from iro_server.store import tables as t
from iro_server.store.database import find, open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import SAYS_Z, ended_run, new_eval, output_items, run_eval, sampled
from tests.iro_server.api.serving import new_key, serving, settings_for, wait_for


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path, request_timeout=345.0)


@pytest.fixture
def client(settings: Settings) -> Iterator[openai.OpenAI]:
    with serving(settings, ByteEngine(seconds_per_token=0.01)) as client:
        yield client


def test_an_item_may_take_as_long_as_a_request_to_the_server(client, monkeypatch):
    options: dict[str, object] = {}

    class RecordingAsker(Asker):
        def __init__(self, endpoint, **chosen) -> None:
            options.update(chosen)
            super().__init__(endpoint, **chosen)

    monkeypatch.setattr("iro_server.jobs.evals.sampling.Asker", RecordingAsker)
    assert run_eval(client, new_eval(client, [SAYS_Z]), sampled(1)).status == "completed"
    assert (options["timeout"], options["retries_timeouts"]) == (345.0, False)


def test_an_item_waits_for_the_limit_of_its_key(client, settings, monkeypatch):
    monkeypatch.setattr("iro_server.graders.posting.LONGEST_WAIT", 0.1)
    monkeypatch.setattr("iro_server.jobs.evals.sampling.ATTEMPTS", 1)
    with_key = client.with_options(api_key=new_key(settings, "p", "--tokens-per-minute", "40"))
    eval_id = new_eval(with_key, [SAYS_Z])
    run = with_key.evals.runs.create(eval_id, data_source=sampled(8))
    with pytest.raises(AssertionError):
        wait_for(lambda: with_key.evals.runs.retrieve(run.id, eval_id=eval_id).result_counts.total, seconds=2.0)
    assert with_key.evals.runs.cancel(run.id, eval_id=eval_id).result_counts.errored == 0


JUDGE = {"type": "score_model", "name": "judge", "model": "bytes"}
JUDGE |= {"input": [{"role": "user", "content": "{{sample.output_text}}"}]}
COMBINED = {"type": "multi", "name": "both", "graders": {"judge": JUDGE}, "calculate_output": "judge"}


@pytest.mark.parametrize("criterion", [JUDGE, COMBINED])
def test_a_judge_of_this_server_waits_for_the_limit_of_the_runs_key(client, settings, monkeypatch, criterion):
    """The items bring their samples; the key's minute has room for some of the judge's calls."""
    monkeypatch.setattr("iro_server.graders.posting.LONGEST_WAIT", 0.1)
    monkeypatch.setattr("iro_server.graders.posting.ATTEMPTS", 1)
    with_key = client.with_options(api_key=new_key(settings, "p", "--tokens-per-minute", "700"))
    eval_id = new_eval(with_key, [criterion])
    rows = [{"item": {"q": "a"}, "sample": {"output_text": "an answer"}}] * 8
    source = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    run = with_key.evals.runs.create(eval_id, data_source=source)
    with pytest.raises(AssertionError):
        wait_for(lambda: with_key.evals.runs.retrieve(run.id, eval_id=eval_id).result_counts.total, seconds=5.0)
    assert with_key.evals.runs.cancel(run.id, eval_id=eval_id).result_counts.errored == 0


@pytest.mark.parametrize(("column", "code"), [("revoked_at", "key_revoked"), ("expires_at", "key_expired")])
def test_a_run_ends_with_its_key(client, settings, column, code):
    sessions = open_database(settings)
    with_key = client.with_options(api_key=new_key(settings, "p"))
    other = client.with_options(api_key=keys.create(sessions, "other", "p")[1])
    eval_id = new_eval(with_key, [SAYS_Z])
    id = with_key.evals.runs.create(eval_id, data_source=sampled(96)).id
    wait_for(lambda: other.evals.runs.retrieve(id, eval_id=eval_id).result_counts.total)
    with sessions.begin() as session:
        key_id = session.scalar(select(t.EvalRun.key_id).where(t.EvalRun.id == id))
        session.execute(update(t.ApiKey).where(t.ApiKey.id == key_id).values({column: t.now() - 1}))
    run = ended_run(other, eval_id, id)
    assert (run.status, run.error.code) == ("failed", code)
    assert 0 < run.result_counts.total == len(output_items(other, eval_id, id)) < 96


def test_the_bytes_of_a_run_grow_with_its_samples(client, settings):
    sessions = open_database(settings)
    eval_id = new_eval(client, [SAYS_Z])
    run = client.evals.runs.create(eval_id, data_source=sampled(20))
    with sessions() as session:
        created = find(session, t.EvalRun, run.id).bytes
    ended_run(client, eval_id, run.id)
    with sessions() as session:
        assert find(session, t.EvalRun, run.id).bytes > created + 20 * len('{"results": [], "sample": {"output": []}}')
