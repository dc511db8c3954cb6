"""Runs as work of the background: a process each, watched until it ends, is cancelled, or the server stops."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from iro_server.concurrency.openmp import job_environment
from iro_server.graders.environment import VARIABLE as GRADER_ENVIRONMENT_VARIABLE
from iro_server.graders.environment import GraderEnvironment
from iro_server.jobs import lock
from iro_server.jobs.background import Lease, Stopping, WorkFailed
from iro_server.jobs.job_runs.folder import RunFolder
from iro_server.jobs.records import LeaseLost
from iro_server.jobs.supervisor import STOP_SECONDS
from iro_server.jobs.worker import TAKEN
from iro_server.settings import Settings
from iro_server.store.database import Sessions, find
from iro_server.store.tables import JobRun

POLL = 0.2  # seconds


class SavedSteps:
    """Has a run's tries count from its last progress on: forgets them with the first step that is saved under a
    lease."""

    def __init__(self, folder: RunFolder, lease: Lease) -> None:
        self.folder, self.lease = folder, lease
        self.before, self.noted = folder.saved_state(), False

    def look(self) -> None:
        if self.noted or self.folder.saved_state() == self.before:
            return
        with contextlib.suppress(SQLAlchemyError):  # a database that is away is told at a later look
            self.lease.forget_tries()
            self.noted = True


class JobRunExecutor:
    def __init__(self, settings: Settings, sessions: Sessions, grader_environment: GraderEnvironment) -> None:
        self.settings, self.sessions, self.grader_environment = settings, sessions, grader_environment

    def execute(self, run: JobRun, lease: Lease) -> None:
        """Run it to its end; a process that is killed is started again, from the run's last checkpoint. Waits while the
        process of a server that lost the lease has the run's folder.

        Raises WorkFailed with what the job raised, LeaseLost once it is cancelled, Stopping where the server stops.
        """
        folder = RunFolder(self.settings.run_dir(run.id))
        saved_steps = SavedSteps(folder, lease)
        status, deaths = -1, 0
        while deaths <= self.settings.job_restarts:
            self._wait_until_free(folder, run, lease)
            folder.write_request(run.kind, run.config)
            folder.clear_error()
            with self._process(run, folder) as process:
                status = self._wait(process, run, lease, saved_steps)
            if status == 0:
                return lease.end("succeeded")
            if error := folder.error():
                lease.end("failed", error)
                return
            deaths += status != TAKEN  # TAKEN: another server's process has the folder, and this one did nothing
        cause = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        raise WorkFailed(f"the run's process died ({cause}) {deaths} times", "worker_died")

    def _wait_until_free(self, folder: RunFolder, run: JobRun, lease: Lease) -> None:
        while lock.held(folder.path):
            lease.check()
            self._check_ours(run)
            time.sleep(POLL)

    @contextmanager
    def _process(self, run: JobRun, folder: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
        """The run's process, which does not outlive the context, nor do those that it has started."""
        environment = job_environment(os.environ)
        environment[GRADER_ENVIRONMENT_VARIABLE] = self.grader_environment.of_job(run.project).model_dump_json()
        with folder.log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "iro_server.jobs.job_runs.worker", str(folder.path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _wait(self, process: subprocess.Popen[bytes], run: JobRun, lease: Lease, saved_steps: SavedSteps) -> int:
        """The process's exit status."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(POLL)
            saved_steps.look()
            if lease.stopped:
                _stop(process, STOP_SECONDS)
                raise Stopping
            try:
                self._check_ours(run)
            except LeaseLost:
                _stop(process, self.settings.cancel_grace)
                raise

    def _check_ours(self, run: JobRun) -> None:
        if not self._goes_on(run):
            raise LeaseLost(f"{run.id} was cancelled, or another server has it")

    def _goes_on(self, run: JobRun) -> bool:
        try:
            with self.sessions() as session:
                current = find(session, JobRun, run.id)
        except SQLAlchemyError:  # a database that is away: the process need not wait for it
            return True
        return current is not None and (current.status, current.attempt) == ("in_progress", run.attempt)


def _stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Ask the process to end after its current step, and wait so long."""
    process.terminate()
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL)
