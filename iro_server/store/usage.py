"""The bytes of a project, as its quotas count them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from iro_server.settings import Settings
from iro_server.store.tables import FINISHED, Batch, Completion, EvalRun, File, Job, Response, Upload, now

BATCH_INPUT = "input.jsonl"  # in the batch's folder


def used_bytes(session: Session, settings: Settings, project: str) -> int:
    """The project's files and announced uploads, the answers of its unfinished batches, and deleted files that
    unfinished jobs and batches still read."""
    files = select(func.coalesce(func.sum(File.bytes), 0)).where(File.project == project, File.unexpired())
    pending = (Upload.project == project, Upload.status == "pending", Upload.expires_at > now())
    announced = select(func.coalesce(func.sum(Upload.bytes), 0)).where(*pending)
    listed = int(session.scalar(files) or 0) + int(session.scalar(announced) or 0)
    return listed + _answer_bytes(session, project) + _deleted_input_bytes(session, settings, project)


def stored_bytes(session: Session, project: str) -> int:
    """Of the project's responses, chat completions and eval runs with their items, as far as they are not expired."""
    tables = (Response, Response.unexpired()), (Completion, Completion.unexpired()), (EvalRun, true())
    sums = [select(func.sum(table.bytes)).where(table.project == project, where) for table, where in tables]
    return sum(int(session.scalar(query) or 0) for query in sums)


def _answer_bytes(session: Session, project: str) -> int:
    """``segments``: for each holder of a batch its attempt, then the bytes of its files."""
    under_way = select(Batch.segments).where(Batch.project == project, Batch.status.in_(("queued", "in_progress")))
    return sum(sum(sizes) for segments in session.scalars(under_way) for _, *sizes in segments or [])


def _deleted_input_bytes(session: Session, settings: Settings, project: str) -> int:
    """Each file once: jobs and batches have links to it."""
    links = dict(_links(session, settings, project))
    listed = set(session.scalars(select(File.id).where(File.id.in_(links), File.unexpired())))
    size = 0
    for file_id in links.keys() - listed:
        with contextlib.suppress(FileNotFoundError):  # the job or batch ended this instant
            size += links[file_id].stat().st_size
    return size


def _links(session: Session, settings: Settings, project: str) -> Iterator[tuple[str, Path]]:
    """The files that unfinished jobs and batches read, by id, and one link to each."""
    open_jobs = (Job.project == project, Job.status.not_in(FINISHED))
    for job_id, training, validation in session.execute(
        select(Job.id, Job.training_file, Job.validation_file).where(*open_jobs)
    ):
        yield training, settings.job_dir(job_id) / "training_file.jsonl"
        if validation is not None:
            yield validation, settings.job_dir(job_id) / "validation_file.jsonl"
    open_batches = (Batch.project == project, Batch.status.in_(("queued", "in_progress")))
    for batch_id, file_id in session.execute(select(Batch.id, Batch.input_file_id).where(*open_batches)):
        yield file_id, settings.batch_dir(batch_id) / BATCH_INPUT
