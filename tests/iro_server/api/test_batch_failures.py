"""Batches that fail midway: their files have the answers that are stored."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from iro_server.api import batches
from iro_server.jobs.background import TRIES, Lease, WorkFailed, claim
from iro_server.jobs.batches.output import AttemptOutput
from iro_server.jobs.batches.running import BatchExecutor
from iro_server.settings import Settings
from iro_server.store import keys
from iro_server.store import tables as t
from iro_server.store.database import find, open_database
from tests.iro_server.api.batches import CHAT, answers, chat, ended_batch, lines_of, new_batch
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import new_key, serving, settings_for, wait_for
from tests.iro_server.graders.test_model import endpoint, said

LINES = lines_of([chat(i) for i in range(64)])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path, lease=1.0)


@pytest.fixture
def client(settings: Settings) -> Iterator[openai.OpenAI]:
    with serving(settings, ByteEngine(seconds_per_token=0.01)) as client:
        yield client


def fail_third_group(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """Raise ``error`` once, as the third group of answers is written; the sizes of the groups."""
    append, groups = AttemptOutput.append, []

    def failing(output: AttemptOutput, kind: str, lines: list) -> None:
        if lines:
            groups.append(len(lines))
            if len(groups) == 3:
                raise error
        append(output, kind, lines)

    monkeypatch.setattr(AttemptOutput, "append", failing)
    return groups


def test_an_unexpected_error_keeps_the_answers(client, settings, monkeypatch):
    fail_third_group(monkeypatch, KeyError("x"))
    batch = ended_batch(client, new_batch(client, LINES).id)
    assert batch.status == "failed" and batch.errors.data[0].code == "internal_error"
    assert [line["custom_id"] for line in answers(client, batch.output_file_id)] == [f"r{i}" for i in range(32)]
    assert batch.request_counts.completed == 32 and not settings.batch_dir(batch.id).exists()


def test_a_full_disk_delays_a_batch(client, settings, monkeypatch):
    groups = fail_third_group(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    batch = ended_batch(client, new_batch(client, LINES).id)
    assert batch.status == "completed" and len(groups) == 5
    assert [line["custom_id"] for line in answers(client, batch.output_file_id)] == [f"r{i}" for i in range(64)]


def test_a_batch_that_ends_each_server_keeps_its_answers(settings):
    with serving(settings, ByteEngine(seconds_per_token=0.05)) as client:
        id = new_batch(client, LINES).id
        wait_for(lambda: client.batches.retrieve(id).request_counts.completed >= 16)
    with open_database(settings).begin() as session:
        session.execute(update(t.Batch).values(status="in_progress", tries=TRIES, lease_until=0))
    with serving(settings, ByteEngine()) as client:
        batch = ended_batch(client, id)
        assert batch.status == "failed" and batch.errors.data[0].code == "server_died"
        assert len(answers(client, batch.output_file_id)) == batch.request_counts.completed >= 16


def test_a_batch_whose_files_are_lost_fails_all_the_same(settings):
    with serving(settings, ByteEngine(seconds_per_token=0.05)) as client:
        id = new_batch(client, LINES).id
        wait_for(lambda: client.batches.retrieve(id).request_counts.completed >= 16)
    for path in settings.batch_dir(id).iterdir():
        path.unlink()
    with serving(settings, ByteEngine()) as client:
        batch = ended_batch(client, id)
        assert (batch.status, batch.errors.data[0].code) == ("failed", "input_lost")
        assert batch.output_file_id is None


@pytest.mark.parametrize(("column", "code"), [("revoked_at", "key_revoked"), ("expires_at", "key_expired")])
def test_a_batch_ends_with_its_key(client, settings, column, code):
    with_key = client.with_options(api_key=new_key(settings, "p"))
    other = client.with_options(api_key=keys.create(open_database(settings), "other", "p")[1])
    id = new_batch(with_key, LINES).id
    wait_for(lambda: other.batches.retrieve(id).request_counts.completed)
    sessions = open_database(settings)
    with sessions.begin() as session:
        key_id = session.scalar(select(t.Batch.key_id).where(t.Batch.id == id))
        session.execute(update(t.ApiKey).where(t.ApiKey.id == key_id).values({column: t.now() - 1}))
    batch = ended_batch(other, id)
    assert batch.status == "failed" and batch.errors.data[0].code == code
    assert 0 < len(answers(other, batch.output_file_id)) == batch.request_counts.completed < 64


def test_a_batch_that_waits_for_its_keys_limit_can_be_cancelled(client, settings, monkeypatch):
    monkeypatch.setattr("iro_server.graders.posting.LONGEST_WAIT", 0.2)
    monkeypatch.setattr("iro_server.jobs.batches.running.ATTEMPTS", 1)
    with_key = client.with_options(api_key=new_key(settings, "p", "--tokens-per-minute", "100"))
    id = new_batch(with_key, LINES).id
    wait_for(lambda: with_key.batches.retrieve(id).status == "in_progress")
    with pytest.raises(AssertionError):  # its first group waits
        wait_for(lambda: with_key.batches.retrieve(id).request_counts.failed, seconds=1.0)
    with_key.batches.cancel(id)
    batch = ended_batch(with_key, id)
    assert (batch.status, batch.request_counts.failed, batch.error_file_id) == ("cancelled", 0, None)
    assert len(answers(with_key, batch.output_file_id)) == batch.request_counts.completed < 16


@pytest.mark.parametrize(
    ("end", "num_failed"), [("expired", 20), ("cancelled", 0), (WorkFailed("revoked", "key_revoked"), 0)]
)
@pytest.mark.parametrize("num_answered", [0, 5])
def test_requests_that_wait_for_a_limit_as_their_batch_ends_have_no_answer(
    settings, monkeypatch, end, num_failed, num_answered
):
    """A batch of 20 requests, all but the first few of which are told to wait until it ends."""
    sessions = open_database(settings)
    ends = chain([None], repeat(end))

    def early_end(executor: BatchExecutor, batch: t.Batch) -> str | None:
        if isinstance(end := next(ends), WorkFailed):
            raise end
        return end

    monkeypatch.setattr(BatchExecutor, "_early_end", early_end)
    settings.batch_dir("batch_1").mkdir(parents=True)
    requests = [{"custom_id": f"r{i}", "url": CHAT, "body": {"model": "m"}} for i in range(20)]
    (settings.batch_dir("batch_1") / "input.jsonl").write_text("\n".join(map(json.dumps, requests)))
    fields = {"endpoint": CHAT, "input_file_id": "file-1", "completion_window": "24h", "expires_at": 2**31}
    with sessions.begin() as session:
        session.add(t.Batch(id="batch_1", **fields))
    batch = claim(sessions, t.Batch, 30)
    lease = Lease(sessions, batch, 30)
    limited = (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"})
    with endpoint(*[said("1")] * num_answered, limited) as (url, _):
        environment = settings.model_copy(update={"server_url": url}).grader_environment("key")
        try:
            BatchExecutor(settings, sessions, environment).execute(batch, lease)
        except WorkFailed as error:
            lease.fail({"code": error.code, "message": str(error)})
    with sessions() as session:
        batch = find(session, t.Batch, "batch_1")
    ids = (batch.output_file_id, batch.error_file_id)
    output, errors = (map(json.loads, (settings.files_dir / id).read_text().splitlines()) if id else () for id in ids)
    answered = [line["custom_id"] for line in output]
    assert batch.completed == len(answered) <= num_answered and answered == [f"r{i}" for i in range(batch.completed)]
    assert batch.failed == max(0, num_failed - batch.completed)
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        (f"r{i}", "batch_expired") for i in range(batch.completed, num_failed)
    ]


def test_a_batch_whose_cancellation_is_not_stored_keeps_its_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(tmp_path, batch_concurrency=0)
    with serving(settings, ByteEngine()) as client:
        batch = new_batch(client, lines_of([chat(1)]))
        folder = settings.batch_dir(batch.id)
        assert folder.exists()

        cancel, is_cancelling = batches._cancel, list[int]()

        def cancel_in_vain(*arguments: Any) -> Any:
            is_cancelling.append(threading.get_ident())
            return cancel(*arguments)

        def lose_commit(session: Session) -> None:
            if threading.get_ident() in is_cancelling:
                raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

        monkeypatch.setattr(batches, "_cancel", cancel_in_vain)
        event.listen(Session, "before_commit", lose_commit)
        try:
            with pytest.raises(openai.InternalServerError, match="nothing was changed"):
                client.with_options(max_retries=0).batches.cancel(batch.id)
        finally:
            event.remove(Session, "before_commit", lose_commit)
        assert client.batches.retrieve(batch.id).status == "validating" and list(folder.iterdir())
