"""Aligned models and checkpoints by the names that callers use."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from iro_server.store.tables import Checkpoint, Job, Model, Permission


def find_named(session: Session, name: str, project: str) -> tuple[Model | Checkpoint, Job] | None:
    """The model or checkpoint that ``project`` owns, or was allowed to call; and its job."""
    models = select(Model, Job).join(Job, Job.id == Model.job_id).where(Model.id == name)
    checkpoints = select(Checkpoint, Job).join(Job, Job.id == Checkpoint.job_id).where(Checkpoint.model_name == name)
    row_and_job = session.execute(models).first() or session.execute(checkpoints).first()
    if row_and_job is None:
        return None
    row, job = row_and_job
    allowed = select(Permission.id).where(Permission.model_name == name, Permission.project_id == project)
    if job.project != project and session.scalar(allowed) is None:
        return None
    return row, job
