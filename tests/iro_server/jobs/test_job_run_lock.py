"""A run whose folder the process of another server still has: that server lost the lease, its process lives."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from sqlalchemy import update

from iro_server.graders.environment import GraderEnvironment
from iro_server.jobs import lock
from iro_server.jobs.background import Lease, Stopping, claim
from iro_server.jobs.job_runs.running import JobRunExecutor
from iro_server.jobs.records import LeaseLost
from iro_server.jobs.worker import TAKEN
from iro_server.store.database import find, open_database
from iro_server.store.tables import JobRun
from tests.iro_server.api.serving import settings_for, wait_for


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path, job_restarts=1)


@pytest.fixture
def sessions(settings):
    return open_database(settings)


@pytest.fixture
def lease(sessions):
    with sessions.begin() as session:
        session.add(JobRun(id="jobrun_1", kind="none", config={}))
    return Lease(sessions, claim(sessions, JobRun, 30), 30)


def run_row(sessions) -> JobRun:
    with sessions() as session:
        return find(session, JobRun, "jobrun_1")


class Executor(JobRunExecutor):
    """Its processes end at once with the statuses that are given, in turn."""

    statuses: list[int]

    @contextmanager
    def _process(self, run, folder):
        program = f"raise SystemExit({self.statuses.pop(0)})"
        with subprocess.Popen([sys.executable, "-c", program]) as process:
            yield process


def executor(settings, sessions, *statuses: int) -> Executor:
    executor = Executor(settings, sessions, GraderEnvironment())
    executor.statuses = list(statuses)
    return executor


def test_a_process_that_finds_the_folder_taken_is_no_death(settings, sessions, lease):
    executor(settings, sessions, TAKEN, TAKEN, TAKEN, 0).execute(run_row(sessions), lease)
    assert run_row(sessions).status == "succeeded"


def test_a_run_waits_for_the_process_of_a_server_that_lost_it(settings, sessions, lease):
    executor_of_heir = executor(settings, sessions, 0)
    with lock.hold(settings.run_dir("jobrun_1")):
        waiting = threading.Thread(target=executor_of_heir.execute, args=(run_row(sessions), lease))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and executor_of_heir.statuses == [0]  # no process was started
    waiting.join(30)
    assert run_row(sessions).status == "succeeded"


@pytest.mark.parametrize("end", ["server", "run"])
def test_the_wait_ends_with_the_server_and_with_the_run(settings, sessions, lease, end):
    errors: list[Exception] = []

    def execute() -> None:
        try:
            executor(settings, sessions, 0).execute(run_row(sessions), lease)
        except (Stopping, LeaseLost) as error:
            errors.append(error)

    with lock.hold(settings.run_dir("jobrun_1")):
        waiting = threading.Thread(target=execute)
        waiting.start()
        if end == "server":
            lease.stop()
        else:
            with sessions.begin() as session:
                session.execute(update(JobRun).values(status="cancelled"))
        wait_for(lambda: errors, seconds=30)
        waiting.join()
    assert isinstance(errors[0], Stopping if end == "server" else LeaseLost)
