"""How much a project may keep and have under way, on a server with keys."""

from __future__ import annotations

import openai
import pytest

from iro_server.store import keys
from iro_server.store.database import open_database
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for, start_job, upload

ROW = b'{"messages": [{"role": "user", "content": "say z"}]}\n'
KIND = {"mime_type": "application/jsonl", "purpose": "fine-tune", "filename": "rows.jsonl"}
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
