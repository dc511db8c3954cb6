"""Backup and restore: a server's rows and files as of one point in time, in a folder.

Rows are stored as JSON, one file per table, so that a backup of SQLite can be restored to PostgreSQL and vice versa.
The folder contains users' files and the secrets of webhooks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection, Engine, Table, func, insert, select, text

from iro_server import JsonObject
from iro_server.settings import Settings
from iro_server.store import files, upgrade
from iro_server.store import tables as t
from iro_server.store.database import ROWS_READ_AT_ONCE, Sessions, open_database

MANIFEST = "backup.json"
LISTINGS = 5  # of a folder whose files are removed while they are copied
PATH_COLUMNS = {"checkpoints": "path", "models": "path"}  # by table
PATH_MEMBERS = {  # of a column with JSON, by table
    "jobs": ("config", ("training_file", "validation_file", "model_dir", "engine_adapters")),
    "events": ("data", ("path",)),
}


class Manifest(BaseModel):
    """``data_dir``: of the server that was backed up. ``revision``: of its tables. ``rows``: their number by table."""

    data_dir: str
    revision: str
    rows: dict[str, int]


def backup(settings: Settings, sessions: Sessions, out: Path) -> dict[str, int]:
    """Write the backup to ``out`` while the server may go on running. Returns the number of rows by table.

    It contains every file, job and model acknowledged before the call. ValueError if ``out`` is not empty or the
    database's tables are another version's; FileCorrupt if a file's bytes are lost, or differ from those that were
    stored.
    """
    engine = sessions.kw["bind"]
    revision = _revision(engine)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another folder")
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    ids_before = {path.name for path in settings.files_dir.glob("file-*") if path.suffix == ""}
    for name in ids_before:  # before the rows are read, since a file may be deleted while others are copied
        _copy(settings.files_dir / name, out / "files" / name)
    _copy_unfinished_jobs(settings, sessions, out)
    counts = _write_snapshot(engine, out)
    counts["files"] = _drop_deleted_files(settings, sessions, out)
    _copy_folders(settings, out)
    manifest = Manifest(data_dir=str(settings.data_dir), revision=revision, rows=counts)
    (out / MANIFEST).write_text(manifest.model_dump_json(indent=1))  # last: it marks the backup complete
    return counts


def restore(settings: Settings, source: Path) -> dict[str, int]:
    """Load the backup into the empty server of ``settings``. Returns the number of rows by table. Running jobs are
    queued. ValueError, before anything is written, if ``source`` is incomplete or damaged or the server is not
    empty; its tables are made only once the source is found whole."""
    manifest = _manifest(source)
    for name, count in manifest.rows.items():
        if sum(1 for _ in _rows(source, name)) != count:
            raise ValueError(f"{source} is damaged: the number of rows in its table {name} differs from {MANIFEST}")
    _check_files(source)
    sessions = open_database(settings)
    _check_server(sessions, manifest)
    paths = DataDirPaths(manifest.data_dir, str(settings.data_dir))
    for folder in ("files", "jobs", "parts", "batches", "runs"):
        if (source / folder).exists():
            shutil.copytree(source / folder, settings.data_dir / folder, dirs_exist_ok=True)
    patterns = (f"{folder}/*/run/{name}.json" for folder in ("jobs", "runs") for name in ("config", "result"))
    for file in chain.from_iterable(map(settings.data_dir.glob, patterns)):
        file.write_text(json.dumps(paths.rewrite_existing(json.loads(file.read_text())), indent=2))
    _insert(sessions.kw["bind"], source, paths)
    return manifest.rows


def _revision(engine: Engine) -> str:
    """The revision of the database's tables. ValueError unless it is this version's: a backup migrates nothing."""
    revision, head = upgrade.revisions(engine)
    if revision != head:
        raise ValueError(
            f"the database's tables are at revision {revision or 'none'}, this version's at {head}: back up with the "
            "version of Iro that the server runs, or migrate the tables first (iro db upgrade)"
        )
    return head


def _write_snapshot(engine: Engine, out: Path) -> dict[str, int]:
    """Write all tables as of one point in time, a few rows at once: they may be larger than the memory. Returns the
    number of rows by table."""
    with _snapshot_transaction(engine) as connection:
        return {
            table.name: _write_rows(out / f"{table.name}.jsonl", _stored_rows(connection, table))
            for table in t.Base.metadata.sorted_tables
        }


def _stored_rows(connection: Connection, table: Table) -> Iterator[JsonObject]:
    query = select(table).order_by(table.c.seq).execution_options(yield_per=ROWS_READ_AT_ONCE)
    with connection.execute(query) as rows:
        yield from map(dict, rows.mappings())


def _write_rows(path: Path, rows: Iterable[JsonObject]) -> int:
    """Returns their number."""
    count = 0
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            count += 1
    return count


@contextlib.contextmanager
def _snapshot_transaction(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction whose statements all read the state at its first statement."""
    if engine.dialect.name == "sqlite":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection
            connection.exec_driver_sql("ROLLBACK")
    else:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))  # a large table takes its time
            yield connection


def _drop_deleted_files(settings: Settings, sessions: Sessions, out: Path) -> int:
    """Drop the rows of files that were deleted after they were read, and the copies of files without a row. Returns the
    number of rows that stay. Raises FileCorrupt."""
    all_rows, rows = out / "files.snapshot", out / "files.jsonl"
    rows.rename(all_rows)
    count = _write_rows(rows, (row for row in _lines(all_rows) if _copy_stored_file(settings, sessions, row, out)))
    all_rows.unlink()
    ids = {row["id"] for row in _rows(out, "files")}
    for path in (out / "files").glob("*"):
        if path.name not in ids:
            path.unlink()
    return count


def _copy_stored_file(settings: Settings, sessions: Sessions, row: JsonObject, out: Path) -> bool:
    """Copy the file unless it is copied already. False if it was deleted after its row was read. FileCorrupt if its
    bytes are lost or others."""
    copy = out / "files" / row["id"]
    if not copy.exists() and not _copy(settings.files_dir / row["id"], copy):
        with sessions() as session:  # whoever deletes a file deletes its row first
            if session.scalar(select(t.File.id).where(t.File.id == row["id"], t.File.unexpired())) is None:
                return False
        raise files.FileCorrupt(f"the bytes of {row['id']} are lost: delete that file, then back up again")
    files.verified(copy, row["sha256"]).close()
    return True


def _copy(source: Path, target: Path) -> bool:
    """Copy a file unless its copy is there already. False if it has been deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not _is_copied(source, target):
            shutil.copy2(source, target)
    except FileNotFoundError:
        return False
    return True


def _is_copied(source: Path, target: Path) -> bool:
    """By size and time of change, which ``copy2`` keeps."""
    if not target.exists():
        return False
    original, copy = source.stat(), target.stat()
    return (original.st_size, original.st_mtime_ns) == (copy.st_size, copy.st_mtime_ns)


def _copy_unfinished_jobs(settings: Settings, sessions: Sessions, out: Path) -> None:
    """Copy the folders of unfinished jobs before the rows are read: the rows then have all events of the steps that are
    done in the copy, and a restored job repeats the later steps, whose events are stored once."""
    with sessions() as session:
        job_ids = session.scalars(select(t.Job.id).where(t.Job.status.not_in(t.FINISHED))).all()
    for id in job_ids:
        _copy_folder(settings.job_dir(id), out / "jobs" / id)


def _copy_folders(settings: Settings, out: Path) -> None:
    for job in _rows(out, "jobs"):
        _copy_job(settings, job, out)
    for batch in _rows(out, "batches"):
        _copy_folder(settings.batch_dir(batch["id"]), out / "batches" / batch["id"])
    for run in _rows(out, "job_runs"):
        _copy_folder(settings.run_dir(run["id"]), out / "runs" / run["id"])
    for upload in {part["upload_id"] for part in _rows(out, "parts")}:
        _copy_folder(settings.parts_dir / upload, out / "parts" / upload)


def _copy_job(settings: Settings, job: JsonObject, out: Path) -> None:
    """Copy a job's folder once its row is read. Of an unfinished one, no step that was done since: its inputs if it was
    created since, and the bundles that its rows name."""
    source, target = settings.job_dir(job["id"]), out / "jobs" / job["id"]
    if job["status"] in t.FINISHED:
        _copy_folder(source, target)
        return
    if not target.exists():
        for path in source.glob("*.jsonl"):
            _copy(path, target / path.name)
    for checkpoint in _rows(out, "checkpoints"):
        bundle = Path(checkpoint["path"])
        if checkpoint["job_id"] == job["id"] and bundle.is_relative_to(source):
            _copy_folder(bundle, target / bundle.relative_to(source))


def _copy_folder(source: Path, target: Path) -> None:
    """Copy the files under ``source`` except locks; a worker may add and remove files meanwhile. What it removes, a
    later step has replaced: the folder is listed again for that step."""
    for _ in range(LISTINGS):
        copied = [_copy(path, target / path.relative_to(source)) for path in _files_under(source)]
        if all(copied):
            return


def _files_under(folder: Path) -> list[Path]:
    """In order of their paths: a run's checkpoints before its metrics, which may have more rows but not fewer."""
    walk = os.walk(folder, onerror=_raise_unless_removed)
    paths = (Path(directory, name) for directory, _, names in walk for name in names if name != "lock")
    return sorted(path for path in paths if path.is_file())


def _raise_unless_removed(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _manifest(source: Path) -> Manifest:
    path = source / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{source} is not a complete backup: it has no {MANIFEST}") from None
    except ValidationError as error:
        raise ValueError(f"{path} is not a backup's manifest: {_first_mistake(error)}") from None
    if absent := {table.name for table in t.Base.metadata.sorted_tables} - manifest.rows.keys():
        raise ValueError(f"{path} is not a backup's manifest: it does not name the table {min(absent)}")
    return manifest


def _check_server(sessions: Sessions, manifest: Manifest) -> None:
    """ValueError unless the server is empty and has the backup's tables."""
    revision = upgrade.revisions(sessions.kw["bind"])[0]
    if manifest.revision != revision:
        message = f"the backup's tables are at revision {manifest.revision}, this version's at {revision}: restore"
        raise ValueError(f"{message} with the version that made the backup, then update Iro")
    with sessions() as session:
        for table in t.Base.metadata.sorted_tables:
            if session.scalar(select(func.count()).select_from(table)):
                raise ValueError(f"this server is not empty: its table {table.name} has rows; restore to a new one")


def _first_mistake(error: ValidationError) -> str:
    mistake = error.errors()[0]
    return ": ".join([*map(str, mistake["loc"]), mistake["msg"]])


def _rows(folder: Path, table: str) -> Iterator[JsonObject]:
    """The backup's rows of the table, in order of ``seq``."""
    return _lines(folder / f"{table}.jsonl")


def _lines(path: Path) -> Iterator[JsonObject]:
    with path.open("rb") as file:
        try:
            yield from map(json.loads, file)
        except ValueError as error:  # no JSON, or no UTF-8
            raise ValueError(f"{path} is damaged: {error}") from None


def _check_files(source: Path) -> None:
    """ValueError for the first file whose bytes are missing or differ from those that were stored."""
    for row in _rows(source, "files"):
        path = source / "files" / row["id"]
        try:
            files.verified(path, row["sha256"]).close()
        except FileNotFoundError:
            raise ValueError(f"{source} is damaged: it has no {path.relative_to(source)}") from None
        except files.FileCorrupt as error:
            raise ValueError(f"{source} is damaged: {error}") from None


def _insert(engine: Engine, source: Path, paths: DataDirPaths) -> None:
    with engine.begin() as connection:
        for table in t.Base.metadata.sorted_tables:
            rows = (_restored(table.name, row, paths) for row in _rows(source, table.name))
            last = 0
            while some_rows := [*islice(rows, ROWS_READ_AT_ONCE)]:
                connection.execute(insert(table), some_rows)
                last = some_rows[-1]["seq"]
            if engine.dialect.name == "postgresql":  # its sequence continues after these rows
                query = text("SELECT setval(pg_get_serial_sequence(:table, 'seq'), :next, false)")
                connection.execute(query, {"table": table.name, "next": last + 1})


def _restored(table: str, row: JsonObject, paths: DataDirPaths) -> JsonObject:
    if table == "jobs" and row["status"] == "running":
        row |= {"status": "queued", "server": None}
    return paths.rewritten(table, row)


class DataDirPaths:
    """Rewrites paths under one data directory to paths under another, and no text of a user that begins with one."""

    def __init__(self, source: str, target: str) -> None:
        self.source, self.target = source, target

    def rewritten(self, table: str, row: JsonObject) -> JsonObject:
        """The row with the columns and the members of JSON that hold paths rewritten."""
        if (column := PATH_COLUMNS.get(table)) is not None:
            return row | {column: self._moved(row[column])}
        if table in PATH_MEMBERS:
            column, members = PATH_MEMBERS[table]
            moved = {name: self._moved(row[column][name]) for name in members if name in row[column]}
            return row | {column: row[column] | moved}
        return row

    def rewrite_existing(self, value: Any) -> Any:
        """A JSON value whose fields are not known here: a text is a path if it names what the target has."""
        if isinstance(value, dict):
            return {key: self.rewrite_existing(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.rewrite_existing(item) for item in value]
        moved = self._moved(value)
        return moved if moved != value and os.path.exists(moved) else value

    def _moved(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(f"{self.source}/"):
            return self.target + value.removeprefix(self.source)
        return value
