"""What happens to a job, as the database keeps it. Each change holds only while the job is in the state it leaves."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from iro_server.store.database import Sessions, find
from iro_server.store.tables import FINISHED, Checkpoint, Event, Job, Model, new_id, now


def add_event(
    session: Session,
    job_id: str,
    message: str,
    level: str = "info",
    type: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    session.add(Event(id=new_id("ftevent-"), job_id=job_id, type=type, level=level, message=message, data=data or {}))


def move(session: Session, job_id: str, before: str, after: str, **values: Any) -> bool:
    """Take a job from status ``before`` to ``after``; False where it is no longer in ``before``."""
    if after in FINISHED:
        values["finished_at"] = now()
    change = update(Job).where(Job.id == job_id, Job.status == before).values(status=after, **values)
    return session.execute(change.returning(Job.id)).first() is not None


def take_next(sessions: Sessions) -> Job | None:
    """The oldest queued job, now running and ours."""
    with sessions.begin() as session:
        job = session.scalar(select(Job).where(Job.status == "queued").order_by(Job.seq).limit(1))
        if job is None or not move(session, job.id, "queued", "running"):
            return None
        add_event(session, job.id, "Fine-tuning job started" if job.restarts == 0 else "Fine-tuning job goes on")
        return job


def record(sessions: Sessions, job: Job, event: dict[str, Any]) -> None:
    """Store an event of the job's ``execute``; one of type "checkpoint" makes a model that can be called."""
    with sessions.begin() as session:
        data = event.get("data") or {}
        message = event.get("message", "")
        if event["type"] == "checkpoint":
            _add_checkpoint(session, job, data)
            message = message or f"Checkpoint created at step {data['step']}"
        type = "metrics" if event["type"] == "metrics" else "message"
        add_event(session, job.id, message, event.get("level", "info"), type, data)


def _add_checkpoint(session: Session, job: Job, data: dict[str, Any]) -> None:
    known = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step == data["step"])
    checkpoint = session.scalar(known)  # a step that a killed worker finished may be reported again
    if checkpoint is None:
        name = f"{job.model_name}:ckpt-step-{data['step']}"
        checkpoint = Checkpoint(id=new_id("ftckpt-"), job_id=job.id, step=data["step"], model_name=name)
        session.add(checkpoint)
    checkpoint.path, checkpoint.metrics = data["path"], data.get("metrics") or {}


def succeed(sessions: Sessions, job: Job, path: str, search: dict[str, Any]) -> None:
    """Mark the job succeeded and serve its model, in one transaction; nothing where it was cancelled meanwhile."""
    with sessions.begin() as session:
        if move(session, job.id, "running", "succeeded"):
            session.add(
                Model(id=job.model_name, project=job.project, base=job.model, job_id=job.id, path=path, search=search)
            )
            add_event(session, job.id, f"New fine-tuned model created: {job.model_name}")
            add_event(session, job.id, "The job has successfully completed")


def fail(sessions: Sessions, job_id: str, code: str, message: str, param: str | None = None) -> None:
    with sessions.begin() as session:
        error = {"code": code, "message": message, "param": param}
        if move(session, job_id, "running", "failed", error=error):
            add_event(session, job_id, f"The job failed: {message}", level="error", data=error)


def worker_died(sessions: Sessions, job_id: str, how: str, restarts: int) -> None:
    """Queue the job again, to go on from its run folder, or mark it failed after ``restarts`` times.

    ``how`` goes on from "the worker …".
    """
    with sessions.begin() as session:
        job = find(session, Job, job_id)
        assert job is not None
        died = job.restarts
        if died < restarts:
            if move(session, job_id, "running", "queued", restarts=died + 1):
                counts = {"restart": died + 1, "most": restarts}
                add_event(session, job_id, f"The worker {how}; the job goes on", level="warn", data=counts)
            return
    fail(sessions, job_id, "worker_died", f"the worker {how}; restarts before: {died}")


def requeue(sessions: Sessions, job_id: str, message: str) -> None:
    """Queue a job again whose worker ended through no fault of its own."""
    with sessions.begin() as session:
        if move(session, job_id, "running", "queued"):
            add_event(session, job_id, message)


def beat(sessions: Sessions, job_id: str) -> str:
    """Say that the job's worker lives; returns the job's status."""
    with sessions.begin() as session:
        change = update(Job).where(Job.id == job_id).values(heartbeat=Job.heartbeat + 1)
        return session.scalars(change.returning(Job.status)).one()
