"""Starts queued jobs, and sees to it that none stays "running" without a worker that lives.

Several servers may share one database and data directory: a job is looked after by the one that took it, and by
another only once that one is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import bindparam, or_, select
from sqlalchemy.orm import load_only

from iro_server.concurrency.executors import in_thread
from iro_server.concurrency.openmp import job_environment
from iro_server.engines.endpoints import KEY_VARIABLE
from iro_server.graders.environment import VARIABLE as GRADER_ENVIRONMENT_VARIABLE
from iro_server.graders.environment import GraderEnvironment
from iro_server.jobs import disk, lock, presence, records
from iro_server.jobs.worker import SETTINGS_VARIABLE, TAKEN
from iro_server.settings import Settings
from iro_server.store.database import Sessions, is_unavailable
from iro_server.store.tables import FINISHED, Job

log = logging.getLogger("iro.jobs")
STOP_SECONDS = 5.0
STOPPED = (*FINISHED, "paused")  # a job whose worker is to end
UNREACHABLE = (
    "The worker is silent, and this machine cannot end it: another machine's process holds the lock on the job's "
    "folder. The job goes on once the lock is free."
)
SignOfLife = tuple[str | None, int, int]  # a job's server, attempt and heartbeat
# Without the columns that a request fills, such as the grader: these rows are read at every tick.
PLACEMENT = select(Job).options(
    load_only(Job.id, Job.project, Job.status, Job.server, Job.attempt, Job.heartbeat, raiseload=True)
)
# Of jobs that run, and of cancelled or paused ones that may still have a worker, those that ``server`` does not look
# after.
UNFINISHED_ELSEWHERE = PLACEMENT.where(
    or_(Job.status == "running", Job.status.in_(records.STOPPING) & Job.server.is_not(None)),
    or_(Job.server.is_distinct_from(bindparam("server")), Job.id.not_in(bindparam("watched", expanding=True))),
)


@dataclass
class Worker:
    """A job's process: our child, or (``process`` None) one that an earlier server left behind.

    ``attempt``: of the job; another server that takes the job after a pause begins the next one. ``unstarted`` says why
    it could not be started. ``heartbeat`` is the last seen and ``since`` when it, or the job's end, was first seen
    (monotonic seconds). ``reported``: an event says that it cannot be ended.
    """

    folder: Path
    attempt: int
    process: subprocess.Popen | None = None
    unstarted: str | None = None
    heartbeat: int | None = None
    since: float = field(default_factory=time.monotonic)
    ended: bool = False
    reported: bool = False

    def child_lives(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def alive(self) -> bool:
        return self.child_lives() or lock.held(self.folder)

    def kill(self, stop_signal: signal.Signals = signal.SIGKILL, only_child: bool = False) -> bool:
        """Signal the worker; False where none lives that this machine can signal."""
        if self.process is not None and self.child_lives():
            pid: int | None = self.process.pid
        else:
            pid = None if only_child else lock.holder(self.folder)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):  # it died this instant
            os.killpg(pid, stop_signal)
        return True

    def is_of(self, job: Job) -> bool:
        """Whether the job is still at the worker's attempt: else another server took it, and has a worker for it."""
        return job.attempt == self.attempt

    def is_to_stop(self, job: Job) -> bool:
        return job.status in STOPPED or not self.is_of(job)

    def seconds_silent(self, job: Job) -> float:
        """Seconds since the heartbeat last grew or, of a worker that is to stop, since it was."""
        ended = self.is_to_stop(job)
        if (job.heartbeat != self.heartbeat and not ended) or ended != self.ended:
            self.heartbeat, self.ended, self.since = job.heartbeat, ended, time.monotonic()
        return time.monotonic() - self.since

    def how_it_died(self) -> str:
        if self.unstarted:
            return f"could not be started ({self.unstarted})"
        if self.process is None:
            return "died while the server was away"
        status = self.process.returncode
        return f"died (by {signal.Signals(-status).name})" if status < 0 else f"died (with exit status {status})"


class Supervisor:
    """One a server. ``run`` it as a task, until ``stopping`` is set."""

    def __init__(self, settings: Settings, sessions: Sessions, grader_environment: GraderEnvironment) -> None:
        self.settings, self.sessions, self.grader_environment = settings, sessions, grader_environment
        self.server = ""  # its name, while it is present
        self.workers: dict[str, Worker] = {}
        self.silent: dict[str, tuple[SignOfLife, float]] = {}  # others' jobs: the last one, and since when (monotonic)
        self.stopping = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, "supervisor")

    async def run(self) -> None:
        takes_jobs = self.settings.job_concurrency > 0
        with presence.present(self.settings.data_dir, takes_jobs) as self.server:
            await self._watch_all()
            await in_thread(self.thread, self.stop)

    async def _watch_all(self) -> None:
        while not self.stopping.is_set():
            try:
                await in_thread(self.thread, self.tick)
            except Exception:  # such as a database that is away: jobs must be watched again once it is back
                log.exception("the jobs could not be looked after; trying again")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), self.settings.job_poll)

    def adopt(self) -> None:
        """Look after what servers that are gone left: jobs that run, and workers of jobs that are to stop."""
        with self.sessions() as session:
            jobs = list(session.scalars(UNFINISHED_ELSEWHERE, {"server": self.server, "watched": list(self.workers)}))
        ids = {job.id for job in jobs}
        self.silent = {job_id: sign for job_id, sign in self.silent.items() if job_id in ids}
        for job in jobs:
            if not self._abandoned(job):
                continue
            worker = Worker(self.settings.job_dir(job.id), job.attempt)
            if job.status in records.STOPPING and not worker.alive():
                records.release(self.sessions, job)
            elif records.adopt(self.sessions, job, self.server):
                self.workers[job.id] = worker

    def _abandoned(self, job: Job) -> bool:
        """Whether the job's server is gone or, on another machine, its worker has been silent for too long."""
        if job.server == self.server:  # taken by a transaction whose answer was lost: nobody started its worker
            return True
        gone = presence.gone(self.settings.data_dir, job.server)
        if gone is not None:
            return gone
        sign = (job.server, job.attempt, job.heartbeat)
        last_sign, since = self.silent.get(job.id, (None, 0.0))
        if sign != last_sign:
            self.silent[job.id] = (sign, time.monotonic())
            return False
        return time.monotonic() - since > self.settings.heartbeat_timeout

    def tick(self) -> None:
        """Look after the jobs once. While the database is unavailable, no worker counts as silent."""
        try:
            self._look_after_jobs()
        except Exception as error:
            if is_unavailable(error):
                self._restart_silences()
            raise

    def _restart_silences(self) -> None:
        for worker in self.workers.values():
            worker.since = time.monotonic()
        self.silent.clear()

    def _look_after_jobs(self) -> None:
        self.adopt()
        for job_id, worker in list(self.workers.items()):
            self._watch(job_id, worker)
        while len(self.workers) < self.settings.job_concurrency and (job := self._take_next()):
            folder = self.settings.job_dir(job.id)
            worker = self.workers[job.id] = Worker(folder, job.attempt)  # watched, whatever starting it raises
            try:
                worker.process = self._start(job, worker.folder)
            except OSError as error:
                worker.unstarted = str(error)
                return  # the next tick counts it as a death

    def _take_next(self) -> Job | None:
        # A job that was paused and resumed may still have its worker, which is about to stop.
        return records.take_next(self.sessions, self.server, besides=tuple(self.workers))

    def stop(self) -> None:
        """End the workers; their jobs go on from their run folders when a server starts again.

        While the database is unavailable, only this server's children are ended, and the jobs go on once another server
        sees that this one is gone.
        """
        try:
            taken = {job_id for job_id, worker in self.workers.items() if not worker.is_of(self._job(job_id))}
        except Exception as error:
            if not is_unavailable(error):
                raise
            log.warning("the database is unavailable: jobs are left to the next server")
            return self._end_workers(set(self.workers))
        self._end_workers(taken)
        for job_id in self.workers.keys() - taken:
            records.requeue(self.sessions, job_id, "The server stopped; the job goes on when it starts again")

    def _end_workers(self, taken: set[str]) -> None:
        """SIGTERM, then SIGKILL after ``STOP_SECONDS``. ``taken``: jobs of which only this server's child is ended."""
        for job_id, worker in self.workers.items():
            worker.kill(signal.SIGTERM, only_child=job_id in taken)
        deadline = time.monotonic() + STOP_SECONDS
        for job_id, worker in self.workers.items():
            lives = worker.child_lives if job_id in taken else worker.alive
            while lives() and time.monotonic() < deadline:
                time.sleep(0.05)
            worker.kill(only_child=job_id in taken)

    def _watch(self, job_id: str, worker: Worker) -> None:
        alive = worker.alive()  # before the status is read: a worker that ends well writes it first
        job = self._job(job_id)
        if not worker.is_of(job):
            alive = worker.child_lives()  # the lock may be the other server's worker's
        limit = self.settings.cancel_grace if worker.is_to_stop(job) else self.settings.heartbeat_timeout
        if alive:
            if worker.seconds_silent(job) > limit and not worker.kill(only_child=not worker.is_of(job)):
                self._report_unreachable(job, worker)
            return
        if not worker.is_of(job):
            log.info("%s was taken by another server while its worker here stopped", job_id)
        elif job.status == "running" and worker.process and worker.process.returncode == TAKEN:
            records.requeue(self.sessions, job_id, "An earlier worker has not stopped yet; the job waits for it")
        elif job.status == "running" and disk.is_full(worker.folder):
            records.pause(self.sessions, job_id, disk.PAUSED, "error")
            records.release(self.sessions, job)
        elif job.status == "running":
            records.worker_died(self.sessions, job_id, worker.how_it_died(), self.settings.job_restarts)
        else:
            records.release(self.sessions, job)
        del self.workers[job_id]

    def _report_unreachable(self, job: Job, worker: Worker) -> None:
        """Say once why a job waits whose silent worker this machine cannot end."""
        if worker.reported or job.status in STOPPED or not worker.alive():
            return
        worker.reported = True
        log.warning("%s: %s", job.id, UNREACHABLE)
        records.warn_once(self.sessions, job.id, UNREACHABLE)

    def _job(self, job_id: str) -> Job:
        with self.sessions() as session:
            return session.scalars(PLACEMENT.where(Job.id == job_id)).one()

    def _start(self, job: Job, folder: Path) -> subprocess.Popen:
        folder.mkdir(parents=True, exist_ok=True)
        grader_environment = self.grader_environment.of_job(job.project)
        environment = job_environment(os.environ) | self.settings.placement
        environment[SETTINGS_VARIABLE] = self.settings.model_dump_json()
        environment[GRADER_ENVIRONMENT_VARIABLE] = grader_environment.model_dump_json()
        if self.settings.engine_key:
            environment[KEY_VARIABLE] = self.settings.engine_key.get_secret_value()
        with (folder / "worker.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "iro_server.jobs.worker", "--job", job.id, "--attempt", str(job.attempt)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
