"""What happens to a job, as the database keeps it. Each change holds only while the job is in the state it leaves."""

from __future__ import annotations

import time

from sqlalchemy import ColumnElement, case, delete, func, select, update
from sqlalchemy.orm import Session

from iro_server import JsonObject
from iro_server.alignment.entry import JobEvent
from iro_server.jobs.deliveries import enqueue
from iro_server.store.database import Sessions, find
from iro_server.store.tables import FINISHED, Checkpoint, Event, File, Job, Model, new_id, now

FIRST_QUEUED = select(Job.seq).where(Job.status == "queued").limit(1)
OPEN = ("validating_files", "queued", "running", "paused")  # a job that may still be cancelled
STOPPING = ("cancelled", "paused")  # a job whose worker may live for a while yet: its ``server`` is set until it ends


class LeaseLost(Exception):
    """The job has another worker now, and this one may not write any more."""


def add_event(
    session: Session,
    job_id: str,
    message: str,
    level: str = "info",
    type: str = "message",
    data: JsonObject | None = None,
) -> None:
    """Add an event, the job's row locked until the transaction ends: the events of a job are committed in the order of
    their ``seq``, by which a stream reads them."""
    session.execute(select(Job.seq).where(Job.id == job_id).with_for_update(key_share=True))
    session.add(Event(id=new_id("ftevent-"), job_id=job_id, type=type, level=level, message=message, data=data or {}))


def move(session: Session, job_id: str, before: str, after: str, **values: object) -> bool:
    """Take a job from status ``before`` to ``after``; False where it is no longer in ``before``.

    Who asked to be told of its end will be, from the same transaction on.
    """
    if after in FINISHED:
        values["finished_at"] = now()
    if after != "running":
        values["estimated_finish"] = None
    if before == "running":
        values["ran"] = Job.ran + (time.time() - Job.started_at)
    change = update(Job).where(Job.id == job_id, Job.status == before).values(status=after, **values)
    project = session.scalars(change.returning(Job.project)).first()
    if project is not None and after in FINISHED:
        enqueue(session, project, f"fine_tuning.job.{after}", {"id": job_id})
    return project is not None


def take_next(sessions: Sessions, server: str, besides: tuple[str, ...] = ()) -> Job | None:
    """A queued job but for ``besides`` and those that another server is just taking, now running and ours: the oldest
    of the project whose turn it is."""
    with sessions() as session:
        if session.scalar(FIRST_QUEUED) is None:
            return None
    queued = (Job.status == "queued", Job.id.not_in(besides))
    with sessions.begin() as session:
        for project in _in_turn(session, *queued):
            oldest = select(Job).where(*queued, Job.project == project).order_by(Job.seq).limit(1)
            # PostgreSQL's; SQLite has one writer anyway
            if (job := session.scalar(oldest.with_for_update(skip_locked=True))) is not None:
                return job if _begin(session, job, server) else None
    return None


def jobs_ahead(session: Session, project: str) -> dict[str, int]:
    """How many jobs of the project run or were queued before each of its queued jobs, by id: projects take turns, their
    jobs go in order."""
    running = select(func.count(Job.seq)).where(Job.project == project, Job.status == "running").scalar_subquery()
    position = func.row_number().over(order_by=Job.seq)
    query = select(Job.id, running + position - 1).where(Job.project == project, Job.status == "queued")
    return {id: ahead for id, ahead in session.execute(query)}


def _in_turn(session: Session, *queued: ColumnElement[bool]) -> list[str]:
    """The projects with jobs that are ``queued``: those that run the fewest first and, of these, those whose last start
    is the longest ago."""
    running = func.count(case((Job.status == "running", 1)))
    last_start = func.coalesce(func.max(Job.started_at), 0.0)
    of_each = select(Job.project).where(Job.project.in_(select(Job.project).where(*queued))).group_by(Job.project)
    return list(session.scalars(of_each.order_by(running, last_start, func.min(Job.seq))))


def _begin(session: Session, job: Job, server: str) -> bool:
    message = "Fine-tuning job started" if job.attempt == 0 else "Fine-tuning job goes on"
    # The heartbeat grows: what was noted of it before the job waited says nothing of the worker that starts.
    values = {"server": server, "attempt": Job.attempt + 1, "started_at": time.time(), "heartbeat": Job.heartbeat + 1}
    if not move(session, job.id, "queued", "running", **values):
        return False
    add_event(session, job.id, message)
    session.refresh(job)
    return True


def adopt(sessions: Sessions, job: Job, server: str) -> bool:
    """Look after a running job in place of a server that is gone; False where another was faster."""
    with sessions.begin() as session:
        change = update(Job).where(Job.id == job.id, Job.server.is_not_distinct_from(job.server)).values(server=server)
        return session.execute(change.returning(Job.id)).first() is not None


def release(sessions: Sessions, job: Job) -> None:
    """Note that a cancelled or paused job has no worker any more, unless it was taken again meanwhile."""
    same = (Job.id == job.id, Job.attempt == job.attempt, Job.server.is_not_distinct_from(job.server))
    with sessions.begin() as session:
        session.execute(update(Job).where(*same, Job.status.in_(STOPPING)).values(server=None))


def _fence(session: Session, job: Job, **columns: object) -> str:
    """The job's status, its row locked. Raises LeaseLost unless the caller is its last worker."""
    ours = update(Job).where(Job.id == job.id, Job.attempt == job.attempt)
    beaten = ours.values(heartbeat=Job.heartbeat + 1, **columns)
    status = session.scalars(beaten.returning(Job.status)).first()
    if status is None:
        raise LeaseLost(f"{job.id} has another worker")
    return status


def beat(sessions: Sessions, job: Job, **columns: object) -> str:
    """Record that the job's worker lives, and what it does (columns of the job); returns the job's status.

    Raises LeaseLost.
    """
    with sessions.begin() as session:
        return _fence(session, job, **columns)


def record(sessions: Sessions, job: Job, event: JobEvent) -> None:
    """Store an event of the job's ``execute``; one of type "checkpoint" makes a model that can be called.

    A worker may repeat the events of one that was killed: a step's metrics and checkpoint are stored once. Raises
    LeaseLost.
    """
    with sessions.begin() as session:
        _fence(session, job)
        data = event.get("data") or {}
        message = event.get("message", "")
        if event["type"] == "checkpoint_dropped":
            session.execute(delete(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step == data["step"]))
            return
        if event["type"] == "checkpoint" and not _add_checkpoint(session, job, data):
            return
        if event["type"] == "checkpoint":
            message = message or f"Checkpoint created at step {data['step']}"
        type = "metrics" if event["type"] == "metrics" else "message"
        if type == "message" or not _has_metrics(session, job, data.get("step")):
            add_event(session, job.id, message, event.get("level", "info"), type, data)


def progress(sessions: Sessions, job: Job, estimated_finish: int) -> None:
    """Note when the running job may be done (Unix time)."""
    with sessions.begin() as session:
        of_ours = update(Job).where(Job.id == job.id, Job.attempt == job.attempt, Job.status == "running")
        session.execute(of_ours.values(estimated_finish=estimated_finish))


def _has_metrics(session: Session, job: Job, step: int | None) -> bool:
    metrics = select(Event.data).where(Event.job_id == job.id, Event.type == "metrics")
    return step is not None and any(data.get("step") == step for data in session.scalars(metrics))


def _add_checkpoint(session: Session, job: Job, data: JsonObject) -> bool:
    """Whether the step's checkpoint is a new one."""
    query = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step == data["step"])
    checkpoint = session.scalar(query)
    new = checkpoint is None
    if checkpoint is None:
        # Deaths count from the last checkpoint on: a long job may lose many workers and still come to its end.
        session.execute(update(Job).where(Job.id == job.id).values(restarts=0))
        name = f"{job.model_name}:ckpt-step-{data['step']}"
        checkpoint = Checkpoint(id=new_id("ftckpt-"), job_id=job.id, step=data["step"], model_name=name)
        session.add(checkpoint)
    checkpoint.path, checkpoint.metrics = data["path"], data.get("metrics") or {}
    return new


def succeed(
    sessions: Sessions, job: Job, path: str, search: JsonObject, results: File | None, trained_tokens: int | None
) -> None:
    """Mark the job succeeded and serve its model, in one transaction; nothing where it was cancelled meanwhile.

    ``results``: its metrics as a file that lies on the disk already. Raises LeaseLost.
    """
    with sessions.begin() as session:
        _fence(session, job)
        files = [results.id] if results else []
        if move(session, job.id, "running", "succeeded", result_files=files, trained_tokens=trained_tokens):
            if results:
                session.add(results)
            model = Model(id=job.model_name, project=job.project, base=job.model, job_id=job.id, path=path)
            model.search = search
            session.add(model)
            add_event(session, job.id, f"New fine-tuned model created: {job.model_name}")
            add_event(session, job.id, "The job has successfully completed")


def fail(sessions: Sessions, job: Job, code: str, message: str, param: str | None = None) -> None:
    """Mark the running job failed, unless another worker has it by now."""
    with sessions.begin() as session:
        _fence(session, job)
        error = {"code": code, "message": message, "param": param}
        if move(session, job.id, "running", "failed", error=error):
            add_event(session, job.id, f"The job failed: {message}", level="error", data=error)


def pause_as_worker(sessions: Sessions, job: Job, message: str) -> None:
    """Pause the running job, which can go on once the cause has passed. Raises LeaseLost where another worker has it by
    now."""
    with sessions.begin() as session:
        _fence(session, job)
        if move(session, job.id, "running", "paused"):
            add_event(session, job.id, message, level="error")


def refuse(sessions: Sessions, job_id: str, code: str, message: str, param: str | None) -> None:
    """Mark a job failed whose files turned out to be no good."""
    with sessions.begin() as session:
        error = {"code": code, "message": message, "param": param}
        if move(session, job_id, "validating_files", "failed", error=error):
            add_event(session, job_id, f"The job failed: {message}", level="error", data=error)


def worker_died(sessions: Sessions, job_id: str, fate: str, restarts: int) -> None:
    """Queue the job again, to go on from its run folder, or mark it failed after ``restarts`` times.

    ``fate`` goes on from "the worker …".
    """
    with sessions.begin() as session:
        job = find(session, Job, job_id)
        assert job is not None
        died = job.restarts
        if died < restarts:
            if move(session, job_id, "running", "queued", restarts=died + 1, server=None):
                counts = {"restart": died + 1, "most": restarts}
                add_event(session, job_id, f"The worker {fate}; the job goes on", level="warn", data=counts)
            return
    fail(sessions, job, "worker_died", f"the worker {fate}; restarts before: {died}")


def requeue(sessions: Sessions, job_id: str, message: str) -> None:
    """Queue a job again whose worker ended through no fault of its own."""
    with sessions.begin() as session:
        if move(session, job_id, "running", "queued", server=None):
            add_event(session, job_id, message)


def warn_once(sessions: Sessions, job_id: str, message: str) -> None:
    """Add an event of level "warn" unless it is the job's last: servers may notice the same in turn."""
    last = select(Event.message).where(Event.job_id == job_id).order_by(Event.seq.desc()).limit(1)
    with sessions.begin() as session:
        if session.scalar(last) != message:
            add_event(session, job_id, message, level="warn")


def pause(sessions: Sessions, job_id: str, message: str, level: str = "info") -> bool:
    """Stop a job that waits or runs, to be resumed from its last finished step; False where it does neither."""
    with sessions.begin() as session:
        paused = any(move(session, job_id, before, "paused") for before in ("validating_files", "queued", "running"))
        if paused:
            add_event(session, job_id, message, level)
        return paused
