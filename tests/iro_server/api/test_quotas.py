"""How much a project may keep and have under way, on a server with keys."""

from __future__ import annotations

import openai
import pytest
from datasets import Dataset
from sqlalchemy import select

from iro_server.graders.posting import AT_ONCE
from iro_server.store import keys
from iro_server.store.database import open_database
from iro_server.store.tables import Upload
from tests.iro_server.api.batches import answers, chat, ended_batch, lines_of, new_batch
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, serving, settings_for, start_job, upload

ROW = b'{"messages": [{"role": "user", "content": "say z"}]}\n'
KIND = {"mime_type": "application/jsonl", "purpose": "fine-tune", "filename": "rows.jsonl"}
LABELS = {"type": "string_check", "name": "a", "input": "{{ sample.output_text }}", "reference": "a", "operation": "eq"}
QUOTAS = {"project_bytes": 10 * len(ROW), "project_files": 3, "project_jobs": 1, "project_webhooks": 1}


@pytest.fixture
def projects(tmp_path, database_url):
    """Clients of two projects on one server."""
    settings = settings_for(tmp_path, database_url=database_url, job_concurrency=0, **QUOTAS)
    sessions = open_database(settings)
    secrets = [keys.create(sessions, name)[1] for name in ("full", "other")]
    with serving(settings, ByteEngine()) as client:
        yield [client.with_options(api_key=secret) for secret in secrets]


def used_up(call) -> str:
    with pytest.raises(openai.RateLimitError) as refused:
        call()
    assert refused.value.code == refused.value.type == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"
    return refused.value.message


def test_files_and_uploads_count_together_and_room_is_made_by_deleting(projects):
    full, other = projects
    file_ids = [upload(full, ROW) for _ in range(2)]
    full.uploads.create(bytes=len(ROW), **KIND)
    assert "4 files, with uploads under way, and it may have 3. Delete some." in used_up(lambda: upload(full, ROW))
    used_up(lambda: full.uploads.create(bytes=1, **KIND))
    upload(other, ROW)
    full.files.delete(file_ids[0])
    upload(full, ROW)


def test_bytes_are_bounded_those_announced_too(projects):
    full, _ = projects
    upload(full, ROW * 5)
    used_up(lambda: upload(full, ROW * 6))
    full.uploads.create(bytes=4 * len(ROW), **KIND)
    used_up(lambda: upload(full, ROW * 2))


def test_a_deleted_file_counts_until_the_jobs_that_read_it_have_ended(projects):
    full, _ = projects
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
    file = upload(full, ROW * 6)
    job = full.fine_tuning.jobs.create(model="bytes", training_file=file, method=method)
    full.fine_tuning.jobs.pause(job.id)
    full.files.delete(file)
    assert "unfinished jobs" in used_up(lambda: upload(full, ROW * 6))
    full.fine_tuning.jobs.cancel(job.id)
    upload(full, ROW * 6)


@pytest.mark.parametrize("deleted_first", [False, True])
def test_neither_order_of_cancelling_and_deleting_leaves_a_copy_of_the_file(projects, tmp_path, deleted_first):
    full, _ = projects
    job = full.fine_tuning.jobs.retrieve(start_job(full))
    calls = [lambda: full.fine_tuning.jobs.cancel(job.id), lambda: full.files.delete(job.training_file)]
    for call in calls[::-1] if deleted_first else calls:
        assert list(tmp_path.glob("jobs/*/training_file.jsonl"))
        call()
    assert not list(tmp_path.glob("jobs/*/training_file.jsonl"))


@pytest.fixture
def small(tmp_path):
    """A client of a server whose projects may have 12,000 bytes of files."""
    with serving(settings_for(tmp_path, job_concurrency=0, project_bytes=12_000), ByteEngine()) as client:
        yield client


@pytest.mark.parametrize("parts", [False, True])
def test_rows_of_a_table_count_as_the_jsonl_that_they_become(small, tmp_path, parts):
    path = tmp_path / "rows.parquet"

    def send(rows: int):
        Dataset.from_dict({"prompt": ["x" * 20] * rows}).to_parquet(str(path))
        assert path.stat().st_size < 2000
        if parts:
            kind = {"mime_type": "application/octet-stream", "purpose": "fine-tune"}
            return small.uploads.upload_file_chunked(file=path, **kind).file
        return small.files.create(file=path, purpose="fine-tune")

    assert "bytes of files" in used_up(lambda: send(400))
    assert not list(tmp_path.glob("files/*"))
    for upload_row in open_database(settings_for(tmp_path))().scalars(select(Upload)):
        small.uploads.cancel(upload_row.id)
    assert send(330).bytes == 330 * 35  # an upload's announced bytes do not count twice


def test_a_batch_ends_once_its_answers_leave_the_project_no_room(small):
    batch = new_batch(small, lines_of([chat(i) for i in range(3 * AT_ONCE)]))
    batch = ended_batch(small, batch.id)
    assert (batch.status, batch.errors.data[0].code) == ("failed", "insufficient_quota")
    assert "12000 bytes" in batch.errors.data[0].message
    completed = batch.request_counts.completed
    assert 0 < completed < batch.request_counts.total
    assert len(answers(small, batch.output_file_id)) == completed


def test_jobs_that_have_not_ended_are_bounded(projects):
    full, other = projects
    job = start_job(full)
    assert "cancel" in used_up(lambda: start_job(full))
    start_job(other)
    full.fine_tuning.jobs.cancel(job)
    start_job(full)


def test_webhook_endpoints_are_bounded(projects):
    full, other = projects
    endpoint = {"name": "x", "url": "https://example.com/hook", "event_types": ["fine_tuning.job.failed"]}

    def add(client):
        return client.post("/webhook_endpoints", body=endpoint, cast_to=object)

    add(full), add(other)
    used_up(lambda: add(full))


def test_a_part_without_bytes_and_too_many_parts_are_refused(projects, monkeypatch):
    full, _ = projects
    monkeypatch.setattr("iro_server.api.uploads.MAX_PARTS", 2)
    started = full.uploads.create(bytes=len(ROW), **KIND)

    def add(data: bytes):
        return full.uploads.parts.create(started.id, data=data)

    with pytest.raises(openai.BadRequestError) as empty:
        add(b"")
    assert empty.value.code == "empty_part"
    add(b"a"), add(b"b")
    with pytest.raises(openai.BadRequestError) as more:
        add(b"c")
    assert more.value.code == "too_many_parts"


def test_bytes_of_stored_answers_and_eval_items_count_together_until_they_are_deleted(tmp_path):
    secret = keys.create(open_database(settings_for(tmp_path)), "small")[1]
    with serving(settings_for(tmp_path, project_stored_bytes=10_000), ByteEngine()) as client:
        small = client.with_options(api_key=secret)
        asking = {"model": "bytes", "max_tokens": 1, "messages": [{"role": "user", "content": "a" * 400}]}
        response = small.responses.create(model="bytes", input="a", max_output_tokens=1, metadata={"a": "b"})
        source = {"type": "custom", "item_schema": {"type": "object"}}
        eval_id = small.evals.create(data_source_config=source, testing_criteria=[LABELS]).id

        def run(size: int):
            content = [{"item": {"text": "a" * size}, "sample": {"output_text": "a"}}]
            jsonl = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
            return small.evals.runs.create(eval_id, data_source=jsonl)

        started = run(3000)  # its items, and its source as it was sent
        assert "bytes of stored responses, chat completions and eval runs" in used_up(lambda: run(3000))
        stored = []
        with pytest.raises(openai.RateLimitError):
            stored += (small.chat.completions.create(**asking, store=True).id for _ in range(20))
        used_up(lambda: small.responses.create(model="bytes", input="a" * 400, max_output_tokens=1))
        small.chat.completions.create(**asking)  # is not stored
        small.chat.completions.delete(stored[0])
        small.chat.completions.create(**asking, store=True)
        small.responses.delete(response.id)
        small.responses.create(model="bytes", input="a", max_output_tokens=1)
        small.evals.runs.delete(started.id, eval_id=eval_id)
        run(2000)
