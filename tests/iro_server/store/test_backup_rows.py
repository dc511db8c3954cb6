"""A backup's rows: few of them are in memory at once, and those of files agree with the bytes beside them."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from iro_server.settings import Settings
from iro_server.store import backup as store_backup
from iro_server.store import tables as t
from iro_server.store.backup import backup, restore
from iro_server.store.database import ROWS_READ_AT_ONCE, Sessions, open_database
from iro_server.store.files import FileCorrupt
from tests.iro_server.store.test_backup import around_snapshot

ROW_BYTES, ROWS = 2**16, 8 * ROWS_READ_AT_ONCE


def peak_bytes(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_rows_larger_than_the_memory_are_backed_up_and_restored(tmp_path, database_url, new_database):
    here = Settings(data_dir=tmp_path / "here", database_url=database_url)
    sessions = open_database(here)
    for number in range(ROWS):
        body = {"text": f"{number} " + "é" + "x" * ROW_BYTES}
        rest = {"model": "m", "messages": [], "completion_metadata": {}, "tags": "", "expires_at": 2**31}
        with sessions.begin() as session:
            session.add(t.Completion(id=f"chatcmpl-{number}", body=body, **rest))
    few_rows = 4 * ROWS_READ_AT_ONCE * ROW_BYTES  # as text and as JSON
    assert peak_bytes(lambda: backup(here, sessions, tmp_path / "backup")) < few_rows
    kind = here.url.partition(":")[0].partition("+")[0]
    there = Settings(data_dir=tmp_path / "there", database_url=new_database(kind))
    restored = open_database(there)
    assert peak_bytes(lambda: restore(there, tmp_path / "backup")) < few_rows
    with sessions() as before, restored() as after:
        query = select(t.Completion.id, t.Completion.body).order_by(t.Completion.seq)
        assert all(row == other for row, other in zip(before.execute(query), after.execute(query), strict=True))
        after.add(t.Completion(id="chatcmpl-new", body={}, **rest))
        after.flush()  # its number follows those of the restored rows


@pytest.fixture
def server(tmp_path: Path) -> tuple[Settings, Sessions]:
    settings = Settings(data_dir=tmp_path / "here")
    return settings, open_database(settings)


def store_file(settings: Settings, sessions: Sessions, id: str, **fields: object) -> None:
    settings.files_dir.mkdir(exist_ok=True)
    (settings.files_dir / id).write_bytes(b"bytes")
    digest = hashlib.sha256(b"bytes").hexdigest()
    with sessions.begin() as session:
        session.add(t.File(id=id, filename="a", purpose="fine-tune", bytes=5, sha256=digest, **fields))


def delete_file(settings: Settings, sessions: Sessions, id: str) -> None:
    with sessions.begin() as session:
        session.delete(session.scalars(select(t.File).where(t.File.id == id)).one())
    (settings.files_dir / id).unlink()


def test_a_file_whose_bytes_are_lost_ends_the_backup(server, tmp_path):
    store_file(*server, "file-1")
    (server[0].files_dir / "file-1").unlink()
    with pytest.raises(FileCorrupt, match="the bytes of file-1 are lost: delete that file"):
        backup(*server, tmp_path / "backup")
    with server[1].begin() as session:
        session.scalars(select(t.File)).one().expires_at = 1
    assert backup(*server, tmp_path / "second")["files"] == 0  # nobody can read it


def test_a_file_that_is_deleted_during_the_backup_is_in_it_whole_or_not_at_all(server, tmp_path, monkeypatch):
    for id in ("file-before", "file-after", "file-stays"):
        store_file(*server, id)
    around_snapshot(
        monkeypatch, lambda: delete_file(*server, "file-before"), lambda: delete_file(*server, "file-after")
    )
    assert backup(*server, tmp_path / "backup")["files"] == 2
    assert {path.name for path in (tmp_path / "backup/files").iterdir()} == {"file-after", "file-stays"}


def test_a_file_that_comes_and_goes_during_the_backup_is_not_in_it(server, tmp_path, monkeypatch):
    store_file(*server, "file-stays")
    around_snapshot(monkeypatch, lambda: store_file(*server, "file-brief"), lambda: delete_file(*server, "file-brief"))
    assert backup(*server, tmp_path / "backup")["files"] == 1
    there = Settings(data_dir=tmp_path / "there")
    assert restore(there, tmp_path / "backup")["files"] == 1
    assert {path.name for path in there.files_dir.iterdir()} == {"file-stays"}
    assert [row["id"] for row in store_backup._rows(tmp_path / "backup", "files")] == ["file-stays"]
