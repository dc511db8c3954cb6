"""Jobs in real worker processes, under a real server, killed at will."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

import pytest
from sqlalchemy.exc import OperationalError

from iro_server.alignment.entry import load_alignment_job
from iro_server.graders.environment import GraderEnvironment
from iro_server.jobs import lock, records, supervisor
from iro_server.jobs.supervisor import Supervisor
from iro_server.jobs.worker import Worker
from iro_server.store.database import find, open_database
from iro_server.store.tables import Job
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, start_job, wait_for


def grader(name: str) -> dict:
    return GRADER | {"name": name}


def messages(client, job_id: str) -> list[str]:
    return [event.message for event in reversed(list(client.fine_tuning.jobs.list_events(job_id, limit=100)))]


def worker_of(settings, job_id: str) -> int:
    return wait_for(lambda: lock.holder(settings.job_dir(job_id)))


def wait_for_step(client, job_id: str) -> None:
    wait_for(lambda: client.fine_tuning.jobs.checkpoints.list(job_id).data)


@pytest.fixture
def settings(tmp_path, database_url):
    return settings_for(tmp_path, database_url=database_url)


def test_a_worker_that_dies_is_restarted_and_goes_on_where_it_was(settings):
    with serving(settings, ByteEngine()) as client:
        job = ended(client, start_job(client, grader("dies-once")))
        told = messages(client, job.id)
        assert job.status == "succeeded"
        assert "The worker died (by SIGKILL); the job goes on" in told
        assert told.count("Checkpoint created at step 1") == 1  # not done again
        assert [c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job.id)] == [2, 1]


@pytest.mark.slow(7)
def test_a_worker_that_keeps_dying_fails_its_job(tmp_path):
    with serving(settings_for(tmp_path, job_restarts=1), ByteEngine()) as client:
        job = ended(client, start_job(client, grader("dies")))
    assert (job.status, job.error.code, job.fine_tuned_model) == ("failed", "worker_died", None)
    assert job.error.message == "the worker died (by SIGKILL); restarts before: 1"


def test_a_worker_that_cannot_be_started_fails_its_job_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with serving(settings_for(tmp_path, job_restarts=1), ByteEngine()) as client:
        job = ended(client, start_job(client))
    assert (job.status, job.error.code) == ("failed", "worker_died")
    assert "could not be started" in job.error.message and "no-python" in job.error.message


def test_a_job_whose_worker_dies_with_the_server_each_time_fails(settings):
    """As where the job brings the machine down: each server finds it running, and no worker."""
    sessions = open_database(settings)
    job = Job(id="ftjob-1", model="bytes", training_file="f", seed=1, method={}, model_name="m", config={})
    with sessions.begin() as session:
        session.add(job)
    for _ in range(settings.job_restarts + 1):
        assert records.take_next(sessions, f"{socket.gethostname()}.gone").id == job.id
        supervisor = Supervisor(settings.model_copy(update={"job_concurrency": 0}), sessions, GraderEnvironment())
        supervisor.tick()
        supervisor.tick()
    with sessions() as session:
        found = find(session, Job, job.id)
    assert found.status == "failed" and "while the server was away" in found.error["message"]


def test_jobs_run_and_hearts_beat_though_the_database_failed_once(tmp_path, monkeypatch):
    adopt, calls = Supervisor.adopt, []

    def away_once(self):
        calls.append(self)
        if len(calls) == 1:
            raise OperationalError("SELECT", {}, Exception("database is locked"))
        adopt(self)

    monkeypatch.setattr(Supervisor, "adopt", away_once)
    with serving(settings_for(tmp_path), ByteEngine()) as client:
        assert ended(client, start_job(client)).status == "succeeded"
    answers = iter([OperationalError("UPDATE", {}, Exception("database is locked")), "cancelled"])

    def beat(*_, **__):
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    monkeypatch.setattr(records, "beat", beat)
    worker = Worker(settings_for(tmp_path, heartbeat=0.01), None, "ftjob-1", 1)
    worker.beat(None)  # returns only once the second beat has set it
    assert worker.stop.is_set()


@pytest.mark.parametrize(
    "behaviour", ["engine-away-once", pytest.param("graders-away-once", marks=pytest.mark.slow(6))]
)
def test_a_job_whose_engine_or_graders_are_away_pauses_and_goes_on_when_resumed(settings, behaviour):
    with serving(settings, ByteEngine()) as client:
        job_id = start_job(client, grader(behaviour))
        wait_for(lambda: client.fine_tuning.jobs.retrieve(job_id).status == "paused")
        told = [event.message for event in client.fine_tuning.jobs.list_events(job_id)]
        assert any("the job is paused" in message for message in told)
        assert not any("10.0.0.1" in message for message in told)
        client.fine_tuning.jobs.resume(job_id)
        assert ended(client, job_id).status == "succeeded"


def test_what_a_job_raises_is_its_error(settings):
    with serving(settings, ByteEngine()) as client:
        job = ended(client, start_job(client, grader("raises")))
        assert job.status == "failed"
        assert (job.error.code, job.error.param) == ("grader_failed", "grader")
        assert job.error.message == "the grader gave NaN for row 1"
        assert "Traceback" in (settings.job_dir(job.id) / "worker.log").read_text()


def test_a_job_that_cannot_be_loaded_fails(tmp_path):
    with serving(settings_for(tmp_path, align_entry="no_such_module:JOB"), ByteEngine()) as client:
        job = ended(client, start_job(client))
    assert job.status == "failed" and "no_such_module" in job.error.message


@pytest.mark.slow(8)
def test_a_stopped_worker_is_missed_by_its_heartbeat(tmp_path):
    settings = settings_for(tmp_path, job_restarts=0, heartbeat_timeout=5.0)
    with serving(settings, ByteEngine()) as client:
        job_id = start_job(client, grader("slow"), iterations=16)
        wait_for_step(client, job_id)
        os.kill(worker_of(settings, job_id), signal.SIGSTOP)
        assert ended(client, job_id).error.code == "worker_died"


@pytest.mark.parametrize("name", ["slow", "stubborn"])
def test_a_cancelled_job_stops_its_worker(tmp_path, name):
    settings = settings_for(tmp_path, cancel_grace=1.0)
    with serving(settings, ByteEngine()) as client:
        job_id = start_job(client, grader(name), iterations=16)
        wait_for_step(client, job_id)
        assert client.fine_tuning.jobs.cancel(job_id).status == "cancelled"
        wait_for(lambda: lock.holder(settings.job_dir(job_id)) is None)
        job = client.fine_tuning.jobs.retrieve(job_id)
        assert (job.status, job.error) == ("cancelled", None)
        with pytest.raises(Exception, match="its status is cancelled"):
            client.fine_tuning.jobs.cancel(job_id)


@pytest.mark.slow(6)
def test_jobs_wait_their_turn_and_a_queued_one_can_be_cancelled(settings):
    with serving(settings, ByteEngine()) as client:
        first, second, third = (start_job(client, grader("slow")) for _ in range(3))
        assert client.fine_tuning.jobs.cancel(second).status == "cancelled"
        assert ended(client, third).status == "succeeded"
        told = messages(client, second)
        assert "Fine-tuning job started" not in told and told[-1] == "The job was cancelled"
        assert client.fine_tuning.jobs.retrieve(first).status == "succeeded"


def test_a_server_that_stops_ends_its_worker_and_the_next_goes_on(settings):
    with serving(settings, ByteEngine()) as client:
        job_id = start_job(client, grader("slow"), iterations=3)
        wait_for_step(client, job_id)
    assert lock.holder(settings.job_dir(job_id)) is None
    with serving(settings, ByteEngine()) as client:
        assert ended(client, job_id).status == "succeeded"
        assert messages(client, job_id).count("Checkpoint created at step 1") == 1


def test_a_folder_has_one_worker(tmp_path):
    with lock.hold(tmp_path) as held:
        assert held and lock.holder(tmp_path) == os.getpid()
        start = time.monotonic()
        with lock.hold(tmp_path) as again:
            assert not again and time.monotonic() - start >= lock.PATIENCE
    assert lock.holder(tmp_path) is None


def test_a_worker_on_another_machine_is_seen_but_never_killed_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    with lock.hold(tmp_path):
        monkeypatch.undo()
        assert supervisor.Worker(tmp_path, attempt=1).alive()
        assert lock.holder(tmp_path) is None  # so that `Worker.kill` finds nobody, and not whoever has that number here


def test_the_server_runs_the_job_registered_as_align():
    job = load_alignment_job()
    assert callable(job.execute) and {"training_file", "grader", "beam_width"} <= set(job.Config.model_fields)
