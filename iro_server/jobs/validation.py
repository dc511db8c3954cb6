"""Between a job's creation and the queue: can anything come of its files?"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import func, select

from iro_server.alignment.entry import DescribedModel, load_alignment_job
from iro_server.concurrency.executors import in_thread
from iro_server.graders.base import Grader
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import parse_grader
from iro_server.graders.remote import GraderServiceUnavailable
from iro_server.jobs import leftovers, records
from iro_server.jobs.estimates.cost import Rows
from iro_server.jobs.estimates.running import affordable_prompts, drawn_rows, num_rows, options_of
from iro_server.jobs.worker import explain
from iro_server.settings import Settings
from iro_server.store import files
from iro_server.store.database import Sessions, find
from iro_server.store.tables import Estimate, File, Job, new_id

log = logging.getLogger("iro.jobs")
# The oldest job of each project.
OLDEST = (
    select(Job)
    .where(Job.seq.in_(select(func.min(Job.seq)).where(Job.status == "validating_files").group_by(Job.project)))
    .order_by(Job.seq)
)
PROJECTS_AT_ONCE = 8  # whose jobs are validated side by side; a project's own jobs one by one


class Validation:
    """One a server. ``run`` it as a task, until ``stopping`` is set. Two servers that both look do no harm."""

    def __init__(
        self, settings: Settings, sessions: Sessions, grader_environment: GraderEnvironment, model: DescribedModel
    ) -> None:
        self.settings, self.sessions, self.grader_environment, self.model = (
            settings,
            sessions,
            grader_environment,
            model,
        )
        self.database = ThreadPoolExecutor(1, "validation")
        self.checks = ThreadPoolExecutor(PROJECTS_AT_ONCE, "job-check")
        self.validating: dict[str, asyncio.Task[None]] = {}  # by project
        self.graders: dict[str, Grader] = {}  # of those jobs
        self.stopping = False

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            try:
                await self._start_waiting()
            except Exception:  # such as a database that is away
                log.exception("no job could be validated; trying again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), self.settings.job_poll)
        self.stopping = True
        for grader in list(self.graders.values()):
            grader.close()  # it may have slept for longer than a server that stops can wait
        await asyncio.gather(*self.validating.values())

    async def _start_waiting(self) -> None:
        """Validate the oldest job of each project that has none under way: no project waits for another's."""
        for job in await in_thread(self.database, self._oldest):
            if job.project not in self.validating:
                self.validating[job.project] = asyncio.create_task(self._validate(job))

    def _oldest(self) -> list[Job]:
        with self.sessions() as session:
            return list(session.scalars(OLDEST))

    async def _validate(self, job: Job) -> None:
        try:
            await in_thread(self.checks, self.validate, job)
        except Exception:  # such as a database that is away
            log.exception("%s could not be validated; trying again", job.id)
        finally:
            del self.validating[job.project]

    def validate(self, job: Job) -> None:
        """Queue the job if it can run, else fail it."""
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
            self._refuse(job, f"invalid_{param}", message, param)
            return False
        return True

    def _check(self, job: Job) -> None:
        try:
            warnings = self._warnings(job)
        except GraderServiceUnavailable:
            raise  # to be validated again
        except Exception as error:  # a refusal, or a job that cannot be checked: its worker could not run it either
            if not self.stopping:
                # A refusal says with its code what is wrong with the files.
                log.info("%s is refused: %s", job.id, error, exc_info=None if hasattr(error, "code") else error)
                self._refuse(job, *explain(error))
            return
        if not self.stopping:  # else the job's grader was closed in mid-check, and the next server validates the job
            self._queue(job, warnings)

    def _refuse(self, job: Job, code: str, message: str, param: str | None) -> None:
        records.refuse(self.sessions, job.id, code, message, param)
        leftovers.discard_deleted_inputs(self.settings, self.sessions, Job.id == job.id)

    def _queue(self, job: Job, warnings: list[str]) -> None:
        estimate = self._estimate(job) if self.settings.job_estimates else None
        with self.sessions.begin() as session:
            if records.move(session, job.id, "validating_files", "queued"):
                for warning in warnings:
                    records.add_event(session, job.id, warning, "warn")
                records.add_event(session, job.id, "Files validated, moving job to queued state")
                if estimate is not None:
                    session.add(estimate)

    def _estimate(self, job: Job) -> Estimate | None:
        """An estimate to be made beside the job, which does not wait for it; None where it has one already."""
        with self.sessions() as session:
            if session.scalar(select(Estimate.id).where(Estimate.job_id == job.id)) is not None:
                return None  # it was validated before it was paused
        with (self.settings.job_dir(job.id) / "training_file.jsonl").open("rb") as lines:
            prompts, rows = drawn_rows(lines, self.settings.estimate_prompts, job.seed)
        validation_rows = None
        if job.validation_file is not None:
            with (self.settings.job_dir(job.id) / "validation_file.jsonl").open("rb") as lines:
                validation_rows = num_rows(lines)
        all_rows = Rows(rows, validation_rows)
        most = affordable_prompts(options_of(job.config), all_rows, self.settings.estimate_rollouts)
        estimate = Estimate(id=new_id("ftest-"), project=job.project, job_id=job.id, model=job.model)
        estimate.training_file, estimate.rows, estimate.prompts = job.training_file, rows, prompts[:most]
        estimate.config = job.config | {"validation_rows": validation_rows}
        return estimate

    def _warnings(self, job: Job) -> list[str]:
        """What the alignment job's own validation warns of. Raises what it raises."""
        alignment_job = load_alignment_job(self.settings.align_entry)
        config = alignment_job.Config.model_validate(job.config)
        grader_environment = self.grader_environment.model_copy(update={"project": job.project})
        with parse_grader(config.grader, grader_environment) as grader:
            self.graders[job.project] = grader
            if self.stopping:  # since before ``run`` could close this grader
                grader.close()
            try:
                return alignment_job.validate(config, self.model, grader)
            finally:
                del self.graders[job.project]
