"""A run whose server died or lost it: its folder, which the process of that server may still have, and its tries."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from sqlalchemy import update

from iro_server.graders.environment import GraderEnvironment
from iro_server.jobs import lock
from iro_server.jobs.background import TRIES, Lease, Stopping, claim
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


class SavingExecutor(JobRunExecutor):
    """Its processes save a step each, as ``saves`` says, and then run on."""

    saves: str | None

    @contextmanager
    def _process(self, run, folder):
        if self.saves == "progress":
            folder.note({"type": "progress", "data": {"done": run.attempt, "total": 9}})
        elif self.saves == "checkpoint":
            checkpoints = folder.out / "checkpoints"
            checkpoints.mkdir(parents=True, exist_ok=True)
            (checkpoints / f"step-{run.attempt}.pt").touch()
            (checkpoints / f"dropped-{run.attempt}.pt").symlink_to("none")  # listed, and gone when it is looked at
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
            yield process


def work_until_the_server_dies(settings, sessions, saves: str | None) -> None:
    row = claim(sessions, JobRun, 30)
    lease = Lease(sessions, row, 30)
    saving = SavingExecutor(settings, sessions, GraderEnvironment())
    saving.saves = saves

    def die() -> None:
        if saves is not None:
            wait_for(lambda: run_row(sessions).tries == 0, seconds=30)
        lease.stop()

    dying = threading.Thread(target=die)
    dying.start()
    with pytest.raises(Stopping):
        saving.execute(row, lease)
    dying.join()
    with sessions.begin() as session:  # nobody renews the lease
        session.execute(update(JobRun).values(lease_until=0.0))


@pytest.mark.parametrize("saves", ["progress", "checkpoint"])
def test_a_run_that_gets_on_is_not_given_up_however_many_servers_die(settings, sessions, saves):
    with sessions.begin() as session:
        session.add(JobRun(id="jobrun_1", kind="none", config={}))
    for attempt in range(1, TRIES + 2):
        work_until_the_server_dies(settings, sessions, saves)
        assert (run_row(sessions).attempt, run_row(sessions).tries) == (attempt, 0)
    for _ in range(TRIES):  # from here on it saves no step
        work_until_the_server_dies(settings, sessions, None)
    assert claim(sessions, JobRun, 30) is None
    assert (run_row(sessions).status, run_row(sessions).error["code"]) == ("failed", "server_died")
