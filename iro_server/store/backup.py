"""A server's rows and files as they were at one point in time, in a folder from which another server can be made.

Rows are kept as JSON, a file a table, so a server may be restored on the other kind of database. The folder holds
what its server holds: users' files, and the secrets of webhooks.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select, text

from iro_server.settings import Settings
from iro_server.store import files, upgrade
from iro_server.store import tables as t
from iro_server.store.database import Sessions

MANIFEST = "backup.json"
Rows = dict[str, list[dict[str, Any]]]


def backup(settings: Settings, sessions: Sessions, out: Path) -> dict[str, int]:
    """Write the backup to ``out``, beside a server that goes on; returns how many rows each table has.

    Every file, job and model that was acknowledged before this began is in it. ValueError where ``out`` is not empty;
    FileCorrupt where a file's bytes are no longer those that were stored.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; choose another folder")
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    early = {path.name for path in settings.files_dir.glob("file-*") if path.suffix == ""}
    for name in early:  # before the rows are read: a file may be deleted while the others are copied
        _copy(settings.files_dir / name, out / "files" / name)
    engine = sessions.kw["bind"]
    rows = _snapshot(engine)
    rows["files"] = [row for row in rows["files"] if _keep(settings, row, out)]
    named = {row["id"] for row in rows["files"]}
    for path in (out / "files").glob("*"):
        if path.name not in named:
            path.unlink()
    _copy_folders(settings, rows, out)
    for name, content in rows.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    counts = {name: len(content) for name, content in rows.items()}
    about = {"data_dir": str(settings.data_dir), "revision": upgrade.revisions(engine)[0], "rows": counts}
    (out / MANIFEST).write_text(json.dumps(about, indent=1))  # last: without it a backup is no whole one
    return counts


def restore(settings: Settings, sessions: Sessions, source: Path) -> dict[str, int]:
    """Make the rows and files of the empty server ``settings`` those of the backup; returns how many rows each table
    has. Jobs that ran wait to go on. ValueError where ``source`` is no whole backup, or this server is not empty."""
    about = _manifest(source, sessions)
    rows = {name: _read(source / f"{name}.jsonl") for name in about["rows"]}
    if {name: len(content) for name, content in rows.items()} != about["rows"]:
        raise ValueError(f"{source} is damaged: its tables do not have the rows that {MANIFEST} tells of")
    moved = _Moved(about["data_dir"], str(settings.data_dir))
    for folder in ("files", "jobs", "parts"):
        if (source / folder).exists():
            shutil.copytree(source / folder, settings.data_dir / folder, dirs_exist_ok=True)
    for config in (settings.data_dir / "jobs").glob("*/run/config.json"):
        config.write_text(json.dumps(moved.value(json.loads(config.read_text())), indent=2))
    for job in rows["jobs"]:
        if job["status"] == "running":
            job |= {"status": "queued", "server": None}
    _insert(sessions.kw["bind"], {name: moved.value(content) for name, content in rows.items()})
    return about["rows"]


def _snapshot(engine: Engine) -> Rows:
    with _at_one_time(engine) as connection:
        return {
            table.name: [dict(row) for row in connection.execute(select(table).order_by(table.c.seq)).mappings()]
            for table in t.Base.metadata.sorted_tables
        }


@contextlib.contextmanager
def _at_one_time(engine: Engine) -> Iterator[Connection]:
    """A connection whose statements all see the database as it was at the first."""
    if engine.dialect.name == "sqlite":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("BEGIN")
            yield connection
            connection.exec_driver_sql("ROLLBACK")
    else:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            yield connection


def _keep(settings: Settings, row: dict[str, Any], out: Path) -> bool:
    """Whether the file's bytes are in the backup: not where it was deleted since its row was read."""
    copy = out / "files" / row["id"]
    if not copy.exists():
        _copy(settings.files_dir / row["id"], copy)
    if not copy.exists():
        return False
    files.verified(copy, row["sha256"]).close()
    return True


def _copy(source: Path, target: Path) -> None:
    """Nothing where ``source`` is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def _copy_folders(settings: Settings, rows: Rows, out: Path) -> None:
    for job in rows["jobs"]:
        _copy_folder(settings.job_dir(job["id"]), out / "jobs" / job["id"])
    for upload in {part["upload_id"] for part in rows["parts"]}:
        _copy_folder(settings.parts_dir / upload, out / "parts" / upload)


def _copy_folder(source: Path, target: Path) -> None:
    """What lies under ``source``, but for locks; a worker may add and remove files meanwhile."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != "lock":
            _copy(path, target / path.relative_to(source))


def _manifest(source: Path, sessions: Sessions) -> dict[str, Any]:
    try:
        about = json.loads((source / MANIFEST).read_text())
    except FileNotFoundError:
        raise ValueError(f"{source} is no whole backup: it has no {MANIFEST}") from None
    here = upgrade.revisions(sessions.kw["bind"])[0]
    if about["revision"] != here:
        message = f"the backup's tables are at revision {about['revision']}, this version's at {here}: restore it"
        raise ValueError(f"{message} with the version that made it, then update Iro")
    with sessions() as session:
        for table in t.Base.metadata.sorted_tables:
            if session.scalar(select(func.count()).select_from(table)):
                raise ValueError(f"this server is not empty: its table {table.name} has rows; restore to a new one")
    return about


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _insert(engine: Engine, rows: Rows) -> None:
    with engine.begin() as connection:
        for table in t.Base.metadata.sorted_tables:
            if rows[table.name]:
                connection.execute(insert(table), rows[table.name])
            if engine.dialect.name == "postgresql":  # its next number follows the rows'
                last = max((row["seq"] for row in rows[table.name]), default=0)
                query = text("SELECT setval(pg_get_serial_sequence(:table, 'seq'), :next, false)")
                connection.execute(query, {"table": table.name, "next": last + 1})


class _Moved:
    """Paths under one data directory become paths under another."""

    def __init__(self, before: str, after: str) -> None:
        self.before, self.after = before, after

    def value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.value(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.value(each) for each in value]
        if isinstance(value, str) and value.startswith(f"{self.before}/"):
            return self.after + value.removeprefix(self.before)
        return value
