"""Between a job's creation and the queue: are its files still what was uploaded?"""

from __future__ import annotations

from sqlalchemy import select

from iro_server.jobs import records
from iro_server.settings import Settings
from iro_server.store import files
from iro_server.store.database import Sessions, find
from iro_server.store.tables import File, Job


def validate_waiting(settings: Settings, sessions: Sessions) -> None:
    """Queue the jobs whose files are sound, and fail the others. Two servers that both look do no harm."""
    with sessions() as session:
        jobs = list(session.scalars(select(Job).where(Job.status == "validating_files").order_by(Job.seq)))
    for job in jobs:
        if all(_sound(settings, sessions, job, param) for param in ("training_file", "validation_file")):
            with sessions.begin() as session:
                if records.move(session, job.id, "validating_files", "queued"):
                    records.add_event(session, job.id, "Files validated, moving job to queued state")


def _sound(settings: Settings, sessions: Sessions, job: Job, param: str) -> bool:
    id = getattr(job, param)
    if id is None:
        return True
    with sessions() as session:
        row = find(session, File, id)
    try:
        files.verified(settings.job_dir(job.id) / f"{param}.jsonl", row.sha256 if row else None).close()
    except (files.FileCorrupt, FileNotFoundError) as error:
        records.refuse(sessions, job.id, f"invalid_{param}", f"{id} cannot be read back: {error}", param)
        return False
    return True
