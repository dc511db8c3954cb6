"""A job in the database and a supervisor beside it, whose ticks a test makes one by one."""

from __future__ import annotations

from sqlalchemy import select

from iro_server.graders.environment import GraderEnvironment
from iro_server.jobs import records
from iro_server.jobs.supervisor import Supervisor
from iro_server.settings import Settings
from iro_server.store.database import Sessions, find
from iro_server.store.tables import Event, Job

FOREIGN = "another-host.1234abcd"
JOB_ID = "ftjob-1"


def running_job(sessions: Sessions, server: str | None) -> Job:
    with sessions.begin() as session:
        job = Job(id=JOB_ID, model="bytes", training_file="f", seed=1, method={}, model_name="m", config={})
        session.add(job)
    return records.take_next(sessions, server)


def resume(sessions: Sessions) -> None:
    with sessions.begin() as session:
        records.move(session, JOB_ID, "paused", "queued")


def supervisor(settings: Settings, sessions: Sessions) -> Supervisor:
    """It takes no jobs."""
    return Supervisor(settings.model_copy(update={"job_concurrency": 0}), sessions, GraderEnvironment())


def status(sessions: Sessions) -> str:
    with sessions() as session:
        return find(session, Job, JOB_ID).status


def messages(sessions: Sessions, level: str) -> list[str]:
    with sessions() as session:
        events = select(Event.message).where(Event.job_id == JOB_ID, Event.level == level).order_by(Event.seq)
        return list(session.scalars(events))
