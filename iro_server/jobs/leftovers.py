"""What ended jobs leave on the disk, and no one will read."""

from __future__ import annotations

import logging
import time

from sqlalchemy import ColumnElement, exists, select

from iro_server.alignment.entry import load_alignment_job
from iro_server.jobs import lock
from iro_server.settings import Settings
from iro_server.store.database import Sessions
from iro_server.store.tables import FINISHED, File, Job

log = logging.getLogger("iro.jobs")
RECENT = 7 * 24 * 3600  # seconds: of jobs that ended longer ago, an earlier call has discarded all
INPUTS = ("training_file", "validation_file")  # columns of a job; its folder has a link to each file


def discard(settings: Settings, job_id: str) -> None:
    """Free the disk of what a job that has failed or was cancelled would have needed to go on."""
    folder = settings.job_dir(job_id) / "run"
    if (folder / "config.json").exists():
        load_alignment_job(settings.align_entry).discard(folder)


def discard_deleted_inputs(settings: Settings, sessions: Sessions, *where: ColumnElement[bool]) -> None:
    """Free the disk of files that were deleted and that jobs which have ended (of these, those ``where``) have links
    to."""
    for param in INPUTS:
        file_id = getattr(Job, param)
        stored = exists().where(File.id == file_id, File.unexpired())
        query = select(Job.id).where(Job.status.in_(FINISHED), file_id.is_not(None), ~stored, *where)
        with sessions() as session:
            job_ids = session.scalars(query).all()
        for job_id in job_ids:
            (settings.job_dir(job_id) / f"{param}.jsonl").unlink(missing_ok=True)


def discard_leftovers(settings: Settings, sessions: Sessions) -> None:
    """``discard`` of jobs whose worker could not: it was killed, or there was none when a paused job was cancelled. And
    ``discard_deleted_inputs`` of files that expired. A job whose storage cannot be used is left to the next call."""
    discard_deleted_inputs(settings, sessions)
    ended = Job.status.in_(("failed", "cancelled")) & (Job.finished_at >= time.time() - RECENT)
    with sessions() as session:
        job_ids = session.scalars(select(Job.id).where(ended)).all()
    for job_id in job_ids:
        try:
            if not lock.held(settings.job_dir(job_id)):
                discard(settings, job_id)
        except Exception:  # such as object storage that is away: the other jobs have nothing to do with it
            log.exception("could not free the disk of %s", job_id)
