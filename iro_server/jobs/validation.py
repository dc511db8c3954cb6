"""Between a job's creation and the queue: can anything come of its files?"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from sqlalchemy import select

from iro_server.engines.base import Engine
from iro_server.graders import parse_grader
from iro_server.jobs import records
from iro_server.jobs.worker import explain, load_entry
from iro_server.settings import Settings
from iro_server.store import files
from iro_server.store.database import Sessions, find
from iro_server.store.tables import File, Job
from iro_server.surroundings import Surroundings

log = logging.getLogger("iro.jobs")


class Validation:
    """One a server. ``run`` it as a task, until ``stopping`` is set. Two servers that both look do no harm."""

    def __init__(self, settings: Settings, sessions: Sessions, surroundings: Surroundings, engine: Engine) -> None:
        self.settings, self.sessions, self.surroundings, self.engine = settings, sessions, surroundings, engine

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            try:
                await asyncio.to_thread(self.validate_waiting)
            except Exception:  # such as a database that is away
                log.exception("no job could be validated; trying again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), self.settings.job_poll)

    def validate_waiting(self) -> None:
        """Queue the jobs that can run, and fail the others."""
        with self.sessions() as session:
            jobs = list(session.scalars(select(Job).where(Job.status == "validating_files").order_by(Job.seq)))
        for job in jobs:
            if all(self._sound(job, param) for param in ("training_file", "validation_file")):
                self._check(job)

    def _sound(self, job: Job, param: str) -> bool:
        """Whether the file is still what was uploaded; the job has failed where it is not."""
        id = getattr(job, param)
        if id is None:
            return True
        with self.sessions() as session:
            row = find(session, File, id)
        try:
            files.verified(self.settings.job_dir(job.id) / f"{param}.jsonl", row.sha256 if row else None).close()
        except (files.FileCorrupt, FileNotFoundError) as error:
            message = f"{id} cannot be read back: {error}"
            records.refuse(self.sessions, job.id, f"invalid_{param}", message, param)
            return False
        return True

    def _check(self, job: Job) -> None:
        try:
            warnings = self._warnings(job)
        except Exception as error:  # a refusal, or a job that cannot be checked: its worker could not run it either
            log.info("%s is refused", job.id, exc_info=error)
            records.refuse(self.sessions, job.id, *explain(error))
            return
        with self.sessions.begin() as session:
            if records.move(session, job.id, "validating_files", "queued"):
                for warning in warnings:
                    records.add_event(session, job.id, warning, "warn")
                records.add_event(session, job.id, "Files validated, moving job to queued state")

    def _warnings(self, job: Job) -> list[str]:
        """What the job's own check says. Raises what it raises."""
        entry = load_entry(self.settings.align_entry)
        if entry.check is None:
            return []
        surroundings = self.surroundings.model_copy(update={"project": job.project})
        config = entry.Config.model_validate(job.config, context=surroundings)
        with parse_grader(job.config["grader"], surroundings) as grader:
            return entry.check(config, self.engine, grader)
