"""/v1/batches by the official client: the answers are those of the routes, mistakes are told by line, and nothing is
lost or doubled by a cancel, an expiry or a killed server."""

from __future__ import annotations

import os
import signal

import openai
import pytest
from sqlalchemy import update

from iro_server.engines.ports import free_port
from iro_server.store import keys
from iro_server.store import tables as t
from iro_server.store.database import open_database
from iro_server.store.sweep import sweep
from tests.iro_server.api.batches import CHAT, answers, chat, ended_batch, lines_of, new_batch, uploaded
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for, wait_for
from tests.iro_server.api.test_evals import server_process
from tests.iro_server.api.test_picking import SCORE


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return settings_for(tmp_path_factory.mktemp("data"), batch_requests=300)


@pytest.fixture(scope="module")
def client(settings):
    with serving(settings, ByteEngine()) as client:
        yield client


def refused(call) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        call()
    return error.value


def test_each_request_gets_the_answer_of_its_route(client):
    bodies = [chat(i) for i in range(20)]
    batch = new_batch(client, lines_of(bodies), metadata={"team": "red"})
    assert (batch.status, batch.metadata, batch.expires_at) == ("validating", {"team": "red"}, batch.created_at + 86400)
    client.files.delete(batch.input_file_id)  # the batch has its requests
    batch = ended_batch(client, batch.id)
    assert (batch.status, batch.model, batch.error_file_id) == ("completed", "bytes", None)
    assert batch.request_counts.to_dict() == {"total": 20, "completed": 20, "failed": 0}
    lines = answers(client, batch.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"r{i}" for i in range(20)]
    for line, body in zip(lines, bodies, strict=True):
        assert line["response"]["status_code"] == 200 and line["response"]["request_id"].startswith("req_")
        asked = client.chat.completions.create(**body)
        assert line["response"]["body"]["choices"][0]["message"]["content"] == asked.choices[0].message.content
    usages = [line["response"]["body"]["usage"] for line in lines]
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.total_tokens == sum(usage["total_tokens"] for usage in usages)
    file = client.files.retrieve(batch.output_file_id)
    assert (file.purpose, file.expires_at) == ("batch_output", None)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"model": "bytes", "prompt": "a", "max_tokens": 3}),
        ("/v1/responses", {"model": "bytes", "input": "a", "max_output_tokens": 3}),
        ("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": ["a", "b"]}),
    ],
)
def test_every_route_takes_batches(client, endpoint, body):
    expires = {"anchor": "created_at", "seconds": 3600}
    batch = new_batch(client, lines_of([body, body], endpoint), endpoint, output_expires_after=expires)
    batch = ended_batch(client, batch.id)
    first, second = answers(client, batch.output_file_id)
    assert first["response"]["body"]["object"] == second["response"]["body"]["object"] != "error"
    assert batch.usage.input_tokens > 0 and batch.usage.total_tokens >= batch.usage.input_tokens
    file = client.files.retrieve(batch.output_file_id)
    assert file.expires_at == file.created_at + 3600


def test_a_request_that_is_refused_stands_in_the_error_file_with_its_answer(client):
    batch = new_batch(client, lines_of([chat(0), chat(1, model="gpt-4o"), chat(2, temperature=9)]))
    batch = ended_batch(client, batch.id)
    assert batch.status == "completed" and (batch.request_counts.completed, batch.request_counts.failed) == (1, 2)
    assert [line["custom_id"] for line in answers(client, batch.output_file_id)] == ["r0"]
    unknown, hot = answers(client, batch.error_file_id)
    assert (unknown["response"]["status_code"], hot["response"]["status_code"]) == (404, 400)
    assert unknown["response"]["body"]["error"]["code"] == "model_not_found" and unknown["error"] is None
    assert hot["response"]["body"]["error"]["param"] == "temperature" and batch.model is None


@pytest.mark.parametrize(
    ("lines", "code", "line", "param"),
    [
        (lines_of([chat(0)]) * 2, "duplicate_custom_id", 2, "custom_id"),
        (lines_of([{"model": "bytes", "prompt": "a"}], "/v1/completions"), "invalid_url", 1, "url"),
        (lines_of([chat(0), chat(1, stream=True)]), "invalid_value", 2, "body.stream"),
        (lines_of([chat(i) for i in range(301)]), "too_many_requests", 301, None),
    ],
    ids=["twice", "url", "stream", "many"],
)
def test_a_batch_that_cannot_run_fails_with_the_line_at_fault(client, lines, code, line, param):
    batch = ended_batch(client, new_batch(client, lines).id)
    assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
    (mistake,) = batch.errors.data
    assert (mistake.code, mistake.line, mistake.param) == (code, line, param)
    assert batch.request_counts.total == 0


def test_what_is_no_batch_is_refused_where_it_stands(client):
    def create(**changes):
        fields = {"endpoint": CHAT, "completion_window": "24h", "input_file_id": "file-0"} | changes
        return refused(lambda: client.batches.create(**fields))

    assert (create().status_code, create().param) == (404, "input_file_id")
    rows = client.files.create(file=("a.jsonl", b'{"prompt": "a"}\n'), purpose="fine-tune").id
    assert create(input_file_id=rows).code == "invalid_purpose"
    assert create(endpoint="/v1/moderations").param == "endpoint"
    assert create(completion_window="1h").param == "completion_window"
    bad = [{"custom_id": "a", "method": "GET", "url": CHAT, "body": {}}]
    error = refused(lambda: uploaded(client, bad))
    assert "line 1 is not a request of a batch: method" in error.message
    assert refused(lambda: client.batches.retrieve("batch_0")).code == "batch_not_found"


def test_a_cancelled_batch_keeps_the_answers_it_has(tmp_path):
    settings = settings_for(tmp_path)
    with serving(settings, ByteEngine(seconds_per_token=0.02)) as client:
        batch = new_batch(client, lines_of([chat(i) for i in range(200)]))
        wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed)
        assert client.batches.cancel(batch.id).status == "cancelling"
        batch = ended_batch(client, batch.id)
        assert batch.status == "cancelled" and batch.cancelling_at <= batch.cancelled_at
        assert 0 < batch.request_counts.completed == len(answers(client, batch.output_file_id)) < 200
        assert refused(lambda: client.batches.cancel(batch.id)).code == "batch_ended"
        wait_for(lambda: not settings.batch_dir(batch.id).exists())


def test_a_batch_that_waits_is_cancelled_at_once(tmp_path):
    settings = settings_for(tmp_path, batch_concurrency=0)
    with serving(settings, ByteEngine()) as client:
        batch = client.batches.cancel(new_batch(client, lines_of([chat(0)])).id)
        assert batch.status == "cancelled" and batch.output_file_id is None


def test_what_is_not_answered_in_the_window_is_an_error_of_the_expired_batch(tmp_path):
    settings = settings_for(tmp_path)
    with serving(settings, ByteEngine(seconds_per_token=0.02)) as client:
        batch = new_batch(client, lines_of([chat(i) for i in range(100)]))
        wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed)
        with open_database(settings).begin() as session:
            session.execute(update(t.Batch).where(t.Batch.id == batch.id).values(expires_at=t.now() - 1))
        batch = ended_batch(client, batch.id)
        assert batch.status == "expired" and batch.expired_at
        output, errors = answers(client, batch.output_file_id), answers(client, batch.error_file_id)
        counts = batch.request_counts
        assert len(output) == counts.completed > 0 and len(errors) == counts.failed == 100 - len(output)
        assert {line["custom_id"] for line in output + errors} == {f"r{i}" for i in range(100)}
        assert errors[0]["error"]["code"] == "batch_expired" and errors[0]["response"] is None


@pytest.mark.slow(10)
def test_a_batch_belongs_to_its_project_and_counts_against_its_quotas(tmp_path, database_url):
    settings = settings_for(tmp_path, database_url=database_url, project_batches=1, batch_concurrency=0)
    sessions = open_database(settings)
    secrets = [keys.create(sessions, name)[1] for name in ("ours", "theirs")]
    with serving(settings, ByteEngine()) as client:
        ours, theirs = (client.with_options(api_key=secret) for secret in secrets)
        batch = new_batch(ours, lines_of([chat(0)]))
        assert refused(lambda: new_batch(ours, lines_of([chat(0)]))).code == "insufficient_quota"
        for call in (
            lambda: theirs.batches.retrieve(batch.id),
            lambda: theirs.batches.cancel(batch.id),
            lambda: theirs.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
        ):
            assert refused(call).status_code == 404
        assert not theirs.batches.list().data and [each.id for each in ours.batches.list()] == [batch.id]


@pytest.mark.parametrize("project", ["équipe", " a ", "50% off"])
def test_a_project_may_have_any_name(tmp_path, project):
    settings = settings_for(tmp_path)
    with serving(settings, ByteEngine("0.7")) as client:
        client = client.with_options(api_key=new_key(settings, project))
        batch = ended_batch(client, new_batch(client, lines_of([chat(0, store=True)])).id)
        assert (batch.status, batch.request_counts.completed) == ("completed", 1)
        assert len(client.chat.completions.list().data) == 1
        assert client.fine_tuning.alpha.graders.run(grader=SCORE, model_sample="x").reward == 0.7


def test_a_key_that_may_generate_may_run_batches_and_its_tokens_are_counted(tmp_path):
    settings = settings_for(tmp_path)
    sessions = open_database(settings)
    trainer, generator = (
        keys.create(sessions, name, "p", scopes=scopes, tokens_per_minute=limit)[1]
        for name, scopes, limit in (("t", None, None), ("g", ["read", "generate"], 100))
    )
    with serving(settings, ByteEngine()) as client:
        file = uploaded(client.with_options(api_key=trainer), lines_of([chat(0), chat(1, max_tokens=100)]))
        client = client.with_options(api_key=generator)
        made = client.batches.create(input_file_id=file, endpoint=CHAT, completion_window="24h")
        batch = ended_batch(client, made.id)
        (large,) = answers(client, batch.error_file_id)
        assert large["response"]["status_code"] == 429  # more than the key may have in a minute: no wait helps
        assert batch.request_counts.completed == 1


def test_the_sweep_leaves_open_batches_alone(tmp_path):
    settings = settings_for(tmp_path, batch_concurrency=0)
    with serving(settings, ByteEngine()) as client:
        batch = new_batch(client, lines_of([chat(0)]))
        os.utime(settings.batch_dir(batch.id), (0, 0))
        sweep(settings, open_database(settings))
        assert settings.batch_dir(batch.id).exists()


@pytest.mark.slow
def test_a_batch_survives_kill_9_and_no_answer_is_lost_or_doubled(tmp_path, client):
    settings = settings_for(tmp_path, port=free_port(), lease=1.0)
    lines = lines_of([chat(i) for i in range(200)])
    with server_process(settings) as (process, killed):
        batch = new_batch(killed, lines)
        wait_for(lambda: killed.batches.retrieve(batch.id).request_counts.completed > 30)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with server_process(settings) as (_, restarted):
        before = restarted.batches.retrieve(batch.id)
        assert before.status == "in_progress" and 30 < before.request_counts.completed < 200
        batch = ended_batch(restarted, batch.id)
        resumed = answers(restarted, batch.output_file_id)
    calm = ended_batch(client, new_batch(client, lines).id)

    def said(lines):
        return [(line["custom_id"], line["response"]["body"]["choices"]) for line in lines]

    assert said(resumed) == said(answers(client, calm.output_file_id)) and len(resumed) == 200
    assert batch.usage == calm.usage
