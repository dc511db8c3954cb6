"""Removing what no longer has an owner: files that expired, parts of uploads that ended, what a crash left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from sqlalchemy import ColumnElement, delete, func, select, update

from iro_server.settings import Settings
from iro_server.store import tables as t
from iro_server.store.database import Sessions

log = logging.getLogger("iro.store")
HOUR = 3600.0
UNKNOWN = "unknown"  # the folder of what no row names, which a database restored from a backup may have forgotten
UNKNOWN_HOURS = 7 * 24
FOLDERS: dict[type[t.Base], str] = {t.Job: "jobs", t.JobRun: "runs", t.Batch: "batches"}  # a folder for each row
ON_DISK: tuple[type[t.Base], ...] = (t.File, *FOLDERS)
DELETED_AT_ONCE = 5_000  # rows of a transaction: a statement of more may exceed ``database_statement_timeout``


async def sweep_hourly(
    sweeps: Sequence[Callable[[Settings, Sessions], None]],
    settings: Settings,
    sessions: Sessions,
    stopping: asyncio.Event,
) -> None:
    while not stopping.is_set():
        for run_sweep in sweeps:
            try:
                await asyncio.to_thread(run_sweep, settings, sessions)
            except Exception:  # such as a database that is away: the next hour will do
                log.exception("could not sweep")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), HOUR)


def sweep(settings: Settings, sessions: Sessions) -> None:
    """Safe beside servers that share the data directory: what is younger than an hour may be arriving, and stays."""
    aged = _aged(settings.files_dir, hours=1)  # before the rows are read: a row follows its file
    folders = {table: _aged(settings.data_dir / name, hours=1) for table, name in FOLDERS.items()}
    with sessions.begin() as session:
        expired = session.scalars(delete(t.File).where(t.File.expires_at <= t.now()).returning(t.File.id)).all()
        named = {table: set(session.scalars(select(table.id))) for table in ON_DISK}
        first = {table: session.scalar(select(func.min(table.created_at))) for table in ON_DISK}
        ended = select(t.Batch.id).where(t.Batch.status.not_in(("queued", "in_progress")))
        ended_batches = set(session.scalars(ended))
    for id in expired:
        (settings.files_dir / id).unlink(missing_ok=True)
    for path, modified in aged:
        if path.suffix == ".partial":
            path.unlink(missing_ok=True)
        else:
            _set_aside_unknown(settings, path, modified, named[t.File], first[t.File])
    for table, aged_folders in folders.items():
        for path, modified in aged_folders:
            if table is t.Batch and path.name in ended_batches:  # its files have its answers
                _remove(path)
            else:
                _set_aside_unknown(settings, path, modified, named[table], first[table])
    for path, _ in _aged(settings.data_dir / UNKNOWN, hours=UNKNOWN_HOURS):
        _remove(path)
    for folder, _ in _aged(settings.parts_dir, hours=2):  # an upload takes parts for an hour
        shutil.rmtree(folder, ignore_errors=True)  # another server may be at it too
    _delete_expired(sessions)  # after the files, which do not depend on it
    if settings.retention is not None:
        _forget(sessions, time.time() - settings.retention)


def _set_aside_unknown(
    settings: Settings, path: Path, modified: float, named: Collection[str], first: int | None
) -> None:
    """Move what no row names, since its creation was cut short, to where it is removed later, and say so. What is older
    than ``first``, the oldest row's creation, stays: another database's, which this one was opened beside by mistake.
    """
    if path.name in named or first is None or modified < first:
        return
    target = settings.data_dir / UNKNOWN / path.name
    target.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # another server was faster
        path.rename(target)
        os.utime(target)  # its time there begins now
        days = UNKNOWN_HOURS // 24
        log.warning("no row names %s: moved to %s, where it is deleted in %d days", path, target, days)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _aged(folder: Path, hours: int) -> list[tuple[Path, float]]:
    """What lies in ``folder`` and was last modified over ``hours`` ago, with when that was."""
    modified_paths = []
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed this instant
            modified_paths.append((path, path.stat().st_mtime))
    return [(path, modified) for path, modified in modified_paths if modified < time.time() - hours * HOUR]


def _delete_expired(sessions: Sessions) -> None:
    """Remove responses and completions that expired, and the parts of uploads that ended."""
    _delete(sessions, t.Response, t.Response.expires_at <= t.now())
    _delete(sessions, t.Completion, t.Completion.expires_at <= t.now())
    late = (t.Upload.status == "pending", t.Upload.expires_at <= t.now())
    with sessions.begin() as session:
        session.execute(update(t.Upload).where(*late).values(status="expired"))
    _delete(sessions, t.Part, t.Part.upload_id.in_(select(t.Upload.id).where(t.Upload.status != "pending")))


def _forget(sessions: Sessions, before: float) -> None:
    """Remove the rows of what ended before then (Unix time): jobs' events, estimates, batches, uploads, deliveries."""
    ended = select(t.Job.id).where(t.Job.status.in_(t.FINISHED), t.Job.finished_at < before)
    _delete(sessions, t.Event, t.Event.job_id.in_(ended))
    _delete(sessions, t.Estimate, t.Estimate.finished_at < before)
    _delete(sessions, t.Batch, t.Batch.finished_at < before)
    _delete(sessions, t.Upload, t.Upload.status != "pending", t.Upload.expires_at < before)
    _delete(sessions, t.Delivery, t.Delivery.due.is_(None), t.Delivery.created_at < before)


def _delete(sessions: Sessions, table: type[t.Base], *where: ColumnElement[bool]) -> None:
    """Delete the rows, DELETED_AT_ONCE in a transaction."""
    batch = select(table.seq).where(*where).limit(DELETED_AT_ONCE)
    while True:
        with sessions.begin() as session:
            deleted = session.scalars(delete(table).where(table.seq.in_(batch)).returning(table.seq)).all()
        if len(deleted) < DELETED_AT_ONCE:
            return
