from __future__ import annotations

import os
import time

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import OperationalError

from iro_server.settings import Settings
from iro_server.store import sweep as store_sweep
from iro_server.store import tables as t
from iro_server.store.database import open_database
from iro_server.store.sweep import UNKNOWN, sweep

pytestmark = pytest.mark.both_databases

HOUR = 3600


@pytest.fixture
def store(tmp_path, database_url):
    settings = Settings(data_dir=tmp_path, database_url=database_url)
    return settings, open_database(settings)


def place(folder, name, hours):
    """A file last written ``hours`` ago."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    then = time.time() - hours * HOUR
    os.utime(folder / name, (then, then))


def add(sessions, *rows):
    with sessions.begin() as session:
        session.add_all(rows)


def place_folder(folder, hours):
    """A folder last changed ``hours`` ago."""
    folder.mkdir(parents=True)
    then = time.time() - hours * HOUR
    os.utime(folder, (then, then))


def batch_row(id, hours, status):
    created = int(time.time() - hours * HOUR)
    fields = {"endpoint": "/v1/chat/completions", "input_file_id": "file-1", "completion_window": "24h"}
    return t.Batch(id=id, created_at=created, status=status, expires_at=created + 24 * HOUR, **fields)


def file_row(id, hours, **values):
    created = int(time.time() - hours * HOUR)
    return t.File(id=id, filename="a", purpose="fine-tune", bytes=1, created_at=created, **values)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_old_files_without_a_row_are_removed(store):
    settings, sessions = store
    for name, hours in [("file-kept", 9), ("file-crashed", 2), ("file-arriving", 0.1)]:
        place(settings.files_dir, name, hours)
    place(settings.files_dir, "file-cut.partial", 2)
    place(settings.files_dir, "file-growing.partial", 0.1)
    add(sessions, file_row("file-kept", 9))
    sweep(settings, sessions)
    assert names(settings.files_dir) == ["file-arriving", "file-growing.partial", "file-kept"]


def test_what_no_row_names_is_set_aside_and_said_before_it_is_deleted(store, caplog):
    settings, sessions = store
    place(settings.files_dir, "file-kept", 9)
    place(settings.files_dir, "file-unknown", 5)
    add(sessions, file_row("file-kept", 9))
    sweep(settings, sessions)
    aside = settings.data_dir / UNKNOWN
    assert names(aside) == ["file-unknown"]
    assert f"no row names {settings.files_dir / 'file-unknown'}" in caplog.text and "in 7 days" in caplog.text
    sweep(settings, sessions)
    assert names(aside) == ["file-unknown"]  # it arrived there now, however old it is
    place(aside, "file-unknown", 8 * 24)
    sweep(settings, sessions)
    assert names(aside) == []


def test_expired_files_lose_row_and_bytes(store):
    settings, sessions = store
    now = int(time.time())
    for name in ("file-late", "file-early"):
        place(settings.files_dir, name, 2)
    add(sessions, file_row("file-late", 2, expires_at=now - 1), file_row("file-early", 2, expires_at=now + HOUR))
    sweep(settings, sessions)
    assert names(settings.files_dir) == ["file-early"]
    with sessions() as session:
        assert [row.id for row in session.query(t.File)] == ["file-early"]


def test_files_expire_whatever_becomes_of_other_rows(store, monkeypatch):
    settings, sessions = store
    settings = settings.model_copy(update={"retention": 2.0 * HOUR})
    place(settings.files_dir, "file-late", 2)
    add(sessions, file_row("file-late", 2, expires_at=int(time.time()) - 1))

    def exceed_statement_timeout(*_arguments) -> None:
        raise OperationalError("DELETE", {}, Exception("canceling statement due to statement timeout"))

    monkeypatch.setattr(store_sweep, "_forget", exceed_statement_timeout)
    with pytest.raises(OperationalError):
        sweep(settings, sessions)
    assert names(settings.files_dir) == []
    with sessions() as session:
        assert not session.query(t.File).all()


def test_rows_are_deleted_in_transactions_of_so_many(store, monkeypatch):
    settings, sessions = store
    monkeypatch.setattr(store_sweep, "DELETED_AT_ONCE", 2)
    rest = {"model": "m", "messages": [], "body": {}, "completion_metadata": {}, "tags": ""}
    for number in range(5):
        add(sessions, t.Completion(id=f"chatcmpl-{number}", expires_at=0, **rest))
    add(sessions, t.Completion(id="chatcmpl-open", expires_at=int(time.time()) + HOUR, **rest))
    deletes: list[str] = []

    def note(_connection, _cursor, statement, *_arguments) -> None:
        if statement.startswith("DELETE FROM completions"):
            deletes.append(statement)

    event.listen(sessions.kw["bind"], "before_cursor_execute", note)
    sweep(settings, sessions)
    assert len(deletes) == 3
    with sessions() as session:
        assert set(session.scalars(select(t.Completion.id))) == {"chatcmpl-open"}


def test_a_new_database_beside_old_files_removes_none_of_them(store):
    settings, sessions = store
    place(settings.files_dir, "file-of-another-database", 5)
    sweep(settings, sessions)
    place(settings.files_dir, "file-new", 2)
    add(sessions, file_row("file-new", 2))
    sweep(settings, sessions)
    assert names(settings.files_dir) == ["file-new", "file-of-another-database"]


def test_uploads_past_their_hour_end_and_their_parts_go(store):
    settings, sessions = store
    now = int(time.time())
    for id, expires in [("upload_late", now - 1), ("upload_open", now + 60)]:
        add(sessions, t.Upload(id=id, filename="a", purpose="fine-tune", bytes=1, expires_at=expires))
        add(sessions, t.Part(id=f"part_{id}", upload_id=id, bytes=1))
        (settings.parts_dir / id).mkdir(parents=True)
    os.utime(settings.parts_dir / "upload_late", (now - 3 * HOUR, now - 3 * HOUR))
    sweep(settings, sessions)
    assert names(settings.parts_dir) == ["upload_open"]
    with sessions() as session:
        assert {row.id: row.status for row in session.query(t.Upload)} == {
            "upload_late": "expired",
            "upload_open": "pending",
        }
        assert [row.id for row in session.query(t.Part)] == ["part_upload_open"]


def test_folders_of_jobs_that_were_never_acknowledged_go_and_no_others(store):
    settings, sessions = store
    for name, hours in [("ftjob-kept", 9), ("ftjob-crashed", 2), ("ftjob-new", 0.1)]:
        place_folder(settings.job_dir(name), hours)
    first = int(time.time() - 9 * HOUR)
    kept = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "model_name": "m", "config": {}}
    add(sessions, t.Job(id="ftjob-kept", created_at=first, **kept))
    sweep(settings, sessions)
    assert names(settings.data_dir / "jobs") == ["ftjob-kept", "ftjob-new"]


def test_folders_of_runs_go_by_the_oldest_run(store):
    settings, sessions = store
    for name, hours in [("run_before", 19), ("run_kept", 9), ("run_crashed", 2)]:
        place_folder(settings.run_dir(name), hours)
    add(sessions, t.JobRun(id="run_kept", created_at=int(time.time() - 9 * HOUR), kind="k", config={}))
    sweep(settings, sessions)
    assert names(settings.data_dir / "runs") == ["run_before", "run_kept"]


def test_a_new_database_beside_a_batch_leaves_its_requests_and_answers(store):
    settings, sessions = store
    place_folder(settings.batch_dir("batch_of-another-database"), 2)
    sweep(settings, sessions)
    assert names(settings.data_dir / "batches") == ["batch_of-another-database"]
    assert not (settings.data_dir / UNKNOWN).exists()


def test_the_folder_of_a_batch_goes_once_its_row_has_ended_and_without_a_row_it_is_set_aside(store):
    settings, sessions = store
    folders = [("batch_before", 19), ("batch_open", 9), ("batch_queued", 9), ("batch_ended", 8), ("batch_unknown", 2)]
    for name, hours in folders:
        place_folder(settings.batch_dir(name), hours)
    statuses = {"batch_open": "in_progress", "batch_queued": "queued", "batch_ended": "failed"}
    add(sessions, *(batch_row(id, 9.1, status) for id, status in statuses.items()))
    sweep(settings, sessions)
    assert names(settings.data_dir / "batches") == ["batch_before", "batch_open", "batch_queued"]
    assert names(settings.data_dir / UNKNOWN) == ["batch_unknown"]


def test_what_ended_is_forgotten_after_the_retention_time_and_what_has_not_is_kept(store):
    settings, sessions = store
    settings = settings.model_copy(update={"retention": 2.0 * HOUR})
    now, old = int(time.time()), int(time.time()) - 3 * HOUR
    job = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "config": {}}
    upload = {"filename": "a", "purpose": "fine-tune", "bytes": 1}
    with sessions.begin() as session:
        for id, status, finished in [("ended", "failed", old), ("recent", "failed", now), ("open", "running", None)]:
            session.add(t.Job(id=id, status=status, finished_at=finished, model_name=id, created_at=old, **job))
            session.flush()
            rest = {"type": "message", "level": "info", "message": "x", "data": {}}
            session.add(t.Event(id=f"event-{id}", job_id=id, created_at=old, **rest))
        session.add(t.Upload(id="u-ended", status="completed", expires_at=old, **upload))
        session.add(t.Upload(id="u-recent", status="completed", expires_at=now, **upload))
        session.add(t.WebhookEndpoint(id="we", name="x", url="https://x.test", event_types=[], secret="s"))
        session.flush()
        for id, due in [("d-sent", None), ("d-due", float(now))]:
            session.add(t.Delivery(id=id, endpoint_id="we", payload={}, due=due, created_at=old))
    sweep(settings, sessions)
    with sessions() as session:
        assert set(session.scalars(select(t.Event.id))) == {"event-recent", "event-open"}
        assert set(session.scalars(select(t.Upload.id))) == {"u-recent"}
        assert set(session.scalars(select(t.Delivery.id))) == {"d-due"}
        assert set(session.scalars(select(t.Job.id))) == {"ended", "recent", "open"}
