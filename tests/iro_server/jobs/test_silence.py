"""Which workers count as silent, and what happens to their jobs: an interruption of what is seen is not one of them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest
from sqlalchemy.exc import OperationalError

from iro_server.jobs import lock, records
from iro_server.jobs.supervisor import UNREACHABLE, Supervisor, Worker
from iro_server.store.database import find, open_database
from iro_server.store.tables import Job
from tests.iro_server.api.serving import settings_for
from tests.iro_server.jobs.supervised import FOREIGN, messages, resume, running_job, status, supervisor

TIMEOUT = 0.3  # seconds


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path, heartbeat_timeout=TIMEOUT)


@pytest.fixture
def sessions(settings):
    return open_database(settings)


@pytest.mark.parametrize("other_tick", [False, True], ids=["unseen pause", "pause that was seen"])
def test_a_job_of_another_machine_is_not_silent_after_a_pause(settings, sessions, other_tick):
    watching = supervisor(settings, sessions)
    job = running_job(sessions, FOREIGN)
    watching.tick()
    records.pause(sessions, job.id, "")
    records.release(sessions, job)
    if other_tick:
        watching.tick()
        assert not watching.silent
    time.sleep(1.5 * TIMEOUT)
    resume(sessions)
    resumed = records.take_next(sessions, FOREIGN)
    assert resumed.heartbeat > job.heartbeat
    watching.tick()
    assert status(sessions) == "running" and not watching.workers


def unavailable(*_: object) -> None:
    raise OperationalError("SELECT", {}, Exception("the database is away"))


def tick_without_database(watching: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Supervisor, "adopt", unavailable)
        with pytest.raises(OperationalError):
            watching.tick()


def test_an_outage_of_the_database_is_not_the_silence_of_another_machine(settings, sessions, monkeypatch):
    watching = supervisor(settings, sessions)
    running_job(sessions, FOREIGN)
    watching.tick()
    time.sleep(1.5 * TIMEOUT)
    tick_without_database(watching, monkeypatch)
    watching.tick()
    assert status(sessions) == "running" and not watching.workers
    time.sleep(1.5 * TIMEOUT)
    watching.tick()
    assert status(sessions) == "queued"


def test_an_outage_of_the_database_is_not_the_silence_of_a_worker(settings, sessions, monkeypatch):
    watching = supervisor(settings, sessions)
    watching.server = "this-server"
    job = running_job(sessions, watching.server)
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    watching.workers[job.id] = Worker(settings.job_dir(job.id), job.attempt, process)
    watching.tick()
    time.sleep(1.5 * TIMEOUT)
    tick_without_database(watching, monkeypatch)
    watching.tick()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5 * TIMEOUT)
    watching.tick()
    assert process.wait(5) == -9


HOLD = "import socket, sys, time; from pathlib import Path; from iro_server.jobs import lock\n"
HOLD += "socket.gethostname = lambda: 'another-host'\n"
HOLD += "with lock.hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_an_event_says_that_a_silent_worker_of_another_machine_cannot_be_ended(settings, sessions):
    watching = supervisor(settings, sessions)
    job = running_job(sessions, FOREIGN)
    folder = settings.job_dir(job.id)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        holder.stdout.readline()
        watching.tick()
        time.sleep(1.5 * TIMEOUT)
        watching.tick()
        assert job.id in watching.workers and not messages(sessions, "warn")
        for _ in range(2):
            time.sleep(1.5 * TIMEOUT)
            watching.tick()
        assert messages(sessions, "warn") == [UNREACHABLE]
        assert holder.poll() is None and status(sessions) == "running"
        watching.workers[job.id].reported = False  # as for a server that looks after the job next
        watching.tick()
        assert messages(sessions, "warn") == [UNREACHABLE]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    watching.tick()
    assert status(sessions) == "queued"


def test_a_server_that_stops_without_a_database_ends_its_workers(settings, sessions, monkeypatch):
    watching = supervisor(settings, sessions)
    watching.server = f"{socket.gethostname()}.gone"
    job = running_job(sessions, watching.server)
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    watching.workers[job.id] = Worker(settings.job_dir(job.id), job.attempt, process)
    monkeypatch.setattr(Supervisor, "_job", unavailable)
    watching.stop()
    assert process.poll() is not None and not lock.held(settings.job_dir(job.id))
    with sessions() as session:
        assert find(session, Job, job.id).status == "running"
    monkeypatch.undo()
    supervisor(settings, sessions).tick()  # the next server's
    assert status(sessions) == "queued"
