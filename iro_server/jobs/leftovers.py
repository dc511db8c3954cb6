"""What ended jobs leave on the disk, and no one will read."""

from __future__ import annotations

import time

from sqlalchemy import select

from iro_server.alignment.entry import load_alignment_job
from iro_server.jobs import lock
from iro_server.settings import Settings
from iro_server.store.database import Sessions
from iro_server.store.tables import Job

RECENT = 7 * 24 * 3600  # seconds: of jobs that ended longer ago, an earlier call has discarded all


def discard(settings: Settings, job_id: str) -> None:
    """Free the disk of what a job that has failed or was cancelled would have needed to go on."""
    folder = settings.job_dir(job_id) / "run"
    if (folder / "config.json").exists():
        load_alignment_job(settings.align_entry).discard(folder)


def discard_leftovers(settings: Settings, sessions: Sessions) -> None:
    """``discard`` of jobs whose worker could not: it was killed, or there was none when a paused job was cancelled."""
    ended = Job.status.in_(("failed", "cancelled")) & (Job.finished_at >= time.time() - RECENT)
    with sessions() as session:
        job_ids = session.scalars(select(Job.id).where(ended)).all()
    for job_id in job_ids:
        if not lock.held(settings.job_dir(job_id)):
            discard(settings, job_id)
