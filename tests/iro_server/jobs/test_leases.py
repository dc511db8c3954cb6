"""Several servers on one database: each job has one worker, and a worker that was given up on says nothing more."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest
from sqlalchemy import inspect

from iro_server.jobs import lock, presence, records
from iro_server.jobs.supervisor import UNFINISHED_ELSEWHERE, Worker
from iro_server.store.database import find, open_database
from iro_server.store.tables import Checkpoint, Job
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, start_job, upload, wait_for
from tests.iro_server.jobs.supervised import FOREIGN, running_job, status, supervisor


@pytest.fixture
def settings(tmp_path, database_url):
    return settings_for(tmp_path, job_concurrency=2, database_url=database_url)


@pytest.fixture
def sessions(settings):
    return open_database(settings)


@pytest.mark.slow(10)
def test_two_servers_run_each_job_once(settings):
    with serving(settings, ByteEngine()) as one, serving(settings, ByteEngine()) as other:
        jobs = [start_job(client, GRADER | {"name": "slow"}) for client in (one, other, one, other)]
        for id in jobs:
            assert ended(other, id).status == "succeeded"
            told = [event.message for event in one.fine_tuning.jobs.list_events(id, limit=100)]
            assert told.count("Fine-tuning job started") == 1 and "Fine-tuning job goes on" not in told
            assert sum(message.startswith("Checkpoint created") for message in told) == 2


def test_a_living_servers_job_is_left_alone_and_a_dead_ones_is_not(settings, sessions):
    with presence.present(settings.data_dir) as elsewhere:
        running_job(sessions, elsewhere)
        watching = supervisor(settings, sessions)
        watching.tick()
        assert not watching.workers and status(sessions) == "running"
    watching.tick()
    assert status(sessions) == "queued"  # it had no worker, and nobody to start one


def test_another_machines_job_is_taken_over_once_its_worker_is_silent(settings, sessions):
    job = running_job(sessions, FOREIGN)
    watching = supervisor(settings.model_copy(update={"heartbeat_timeout": 0.5}), sessions)
    for _ in range(4):
        watching.tick()
        time.sleep(0.2)
        records.beat(sessions, job)
    assert status(sessions) == "running"
    watching.tick()
    time.sleep(0.6)
    watching.tick()
    assert status(sessions) == "queued"


def test_of_two_that_would_take_over_one_does(settings, sessions):
    job = running_job(sessions, FOREIGN)
    assert records.adopt(sessions, job, "one") and not records.adopt(sessions, job, "other")


def watched_elsewhere(sessions) -> list[Job]:
    with sessions() as session:
        return list(session.scalars(UNFINISHED_ELSEWHERE, {"server": "one", "watched": []}))


@pytest.mark.parametrize("status", ["cancelled", "paused"])
def test_a_stopped_job_without_a_worker_is_read_no_more(settings, sessions, status):
    rest = {"model": "bytes", "training_file": "f", "seed": 1, "method": {}, "model_name": "m", "config": {}}
    with sessions.begin() as session:
        session.add(Job(id="ftjob-never-run", status=status, **rest))
    assert not watched_elsewhere(sessions)
    job = running_job(sessions, f"{socket.gethostname()}.gone")
    with sessions.begin() as session:
        records.move(session, job.id, "running", status)
    assert [row.id for row in watched_elsewhere(sessions)] == [job.id]
    assert {"method", "config"} <= inspect(watched_elsewhere(sessions)[0]).unloaded
    watching = supervisor(settings, sessions)
    with lock.hold(settings.job_dir(job.id)):
        watching.tick()
        assert watched_elsewhere(sessions)  # its worker lives
    watching.tick()
    assert not watched_elsewhere(sessions)


@pytest.mark.parametrize("status", ["cancelled", "paused"])
def test_a_server_gives_up_a_stopped_job_once_its_worker_has_ended(settings, sessions, status):
    watching = supervisor(settings, sessions)
    watching.server = "this-server"
    job = running_job(sessions, watching.server)
    watching.workers[job.id] = Worker(settings.job_dir(job.id), job.attempt)
    with sessions.begin() as session:
        records.move(session, job.id, "running", status)
    assert watched_elsewhere(sessions)
    watching.tick()
    assert not watching.workers and not watched_elsewhere(sessions)


def test_a_stopped_job_that_was_taken_again_stays_its_servers(sessions):
    paused = running_job(sessions, "one")
    records.pause(sessions, paused.id, "")
    with sessions.begin() as session:
        records.move(session, paused.id, "paused", "queued")
    records.take_next(sessions, "one")
    records.pause(sessions, paused.id, "")
    records.release(sessions, paused)  # by whoever saw the first pause
    with sessions() as session:
        assert find(session, Job, paused.id).server == "one"


HOLD = "import sys, time; from pathlib import Path; from iro_server.jobs import lock\n"
HOLD += "with lock.hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.mark.parametrize("stops", [False, True])
def test_a_job_that_another_server_took_after_a_pause_is_left_to_it(settings, sessions, stops):
    """Whether the first server goes on or stops, the other's worker lives, and the job is its own."""
    with presence.present(settings.data_dir) as first, presence.present(settings.data_dir) as second:
        watching = supervisor(settings, sessions)
        watching.server = first
        job = running_job(sessions, first)
        ended_worker = subprocess.Popen([sys.executable, "-c", ""])
        ended_worker.wait()
        watching.workers[job.id] = Worker(settings.job_dir(job.id), job.attempt, ended_worker)
        records.pause(sessions, job.id, "")
        with sessions.begin() as session:
            records.move(session, job.id, "paused", "queued")
        records.take_next(sessions, second)
        folder = str(settings.job_dir(job.id))
        other_worker = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
        other_worker.stdout.readline()
        watching.stop() if stops else watching.tick()
        assert other_worker.poll() is None and status(sessions) == "running"
        assert stops or not watching.workers
        other_worker.kill()
        other_worker.wait()
        other_worker.stdout.close()
        watching.tick()
        assert status(sessions) == "running"  # the second server's tick is to see that


def test_a_worker_that_was_given_up_on_cannot_write(sessions):
    first = running_job(sessions, "one")
    records.requeue(sessions, first.id, "")
    second = records.take_next(sessions, "other")
    assert second.attempt == first.attempt + 1
    checkpoint = {"type": "checkpoint", "data": {"step": 1, "path": "/nowhere"}}
    for write in (
        lambda: records.beat(sessions, first),
        lambda: records.record(sessions, first, checkpoint),
        lambda: records.fail(sessions, first, "code", "message"),
        lambda: records.pause_as_worker(sessions, first, "message"),
        lambda: records.succeed(sessions, first, "/nowhere", {}, None, None),
    ):
        with pytest.raises(records.LeaseLost):
            write()
    assert status(sessions) == "running"
    records.record(sessions, second, checkpoint)
    with sessions() as session:
        assert session.query(Checkpoint).count() == 1


def test_what_is_told_twice_is_kept_once(settings, sessions):
    job = running_job(sessions, "one")
    for _ in range(2):
        records.record(sessions, job, {"type": "metrics", "message": "Step 1/2", "data": {"step": 1}})
        records.record(sessions, job, {"type": "checkpoint", "data": {"step": 1, "path": "/nowhere"}})
    records.record(sessions, job, {"type": "metrics", "message": "Step 2/2", "data": {"step": 2}})
    with serving(settings, ByteEngine()) as client:
        told = [event.message for event in reversed(client.fine_tuning.jobs.list_events(job.id).data)]
    assert [m for m in told if "tep" in m] == ["Step 1/2", "Checkpoint created at step 1", "Step 2/2"]


def test_a_server_that_is_killed_is_seen_to_be_gone(settings):
    program = "import sys, time; from pathlib import Path; from iro_server.jobs import presence\n"
    program += "with presence.present(Path(sys.argv[1])) as name: print(name, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", program, str(settings.data_dir)], stdout=subprocess.PIPE, text=True)
    name = other.stdout.readline().strip()
    assert presence.gone(settings.data_dir, name) is False
    other.kill()
    other.wait()
    other.stdout.close()
    assert presence.gone(settings.data_dir, name) is True
    assert presence.gone(settings.data_dir, FOREIGN) is None


@pytest.mark.slow(10)
def test_a_paused_job_stops_keeps_its_checkpoints_and_goes_on(settings):
    with serving(settings, ByteEngine()) as client:
        jobs = client.fine_tuning.jobs
        id = start_job(client, GRADER | {"name": "slow"}, iterations=4)
        wait_for(lambda: jobs.checkpoints.list(id).data)
        assert jobs.pause(id).status == "paused"
        wait_for(lambda: lock.holder(settings.job_dir(id)) is None)
        done = jobs.checkpoints.list(id).data
        model = done[0].fine_tuned_model_checkpoint
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=4)
        time.sleep(0.3)
        assert jobs.retrieve(id).status == "paused"
        with pytest.raises(Exception, match="only a job that waits or runs"):
            jobs.pause(id)
        assert jobs.resume(id).status == "queued"
        assert ended(client, id).status == "succeeded"
        assert [c.step_number for c in jobs.checkpoints.list(id)] == [4, 3, 2, 1]
        told = [event.message for event in jobs.list_events(id, limit=100)]
        assert told.count("Checkpoint created at step 1") == 1
        with pytest.raises(Exception, match="not paused"):
            jobs.resume(id)


@pytest.mark.slow(11)
def test_a_job_resumed_before_its_worker_has_stopped_waits_for_it(settings):
    with serving(settings, ByteEngine()) as client:
        jobs = client.fine_tuning.jobs
        id = start_job(client, GRADER | {"name": "slow"}, iterations=3)
        wait_for(lambda: jobs.checkpoints.list(id).data)
        jobs.pause(id), jobs.resume(id)
        job = ended(client, id)
        assert job.status == "succeeded" and job.error is None


def test_a_paused_job_can_be_cancelled(settings):
    with serving(settings, ByteEngine()) as client:
        id = start_job(client, GRADER | {"name": "slow"}, iterations=3)
        wait_for(lambda: client.fine_tuning.jobs.retrieve(id).status == "running")
        client.fine_tuning.jobs.pause(id)
        assert client.fine_tuning.jobs.cancel(id).status == "cancelled"


def test_a_file_that_rotted_after_its_upload_fails_the_job(settings):
    with serving(settings, ByteEngine()) as client:
        file = upload(client)
        path = settings.files_dir / file
        path.write_bytes(path.read_bytes().replace(b"say z", b"say y"))
        method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
        made = client.fine_tuning.jobs.create(model="bytes", training_file=file, method=method)
        assert made.status == "validating_files"
        job = ended(client, made.id)
        assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_training_file", "training_file")
        client.files.delete(file)
        assert not (settings.job_dir(made.id) / "training_file.jsonl").exists()


def test_a_job_whose_server_did_not_hear_that_it_has_it_goes_on(settings, sessions):
    """As where the connection breaks while the answer to a commit is read."""
    watching = supervisor(settings, sessions)
    with presence.present(settings.data_dir) as watching.server:
        running_job(sessions, watching.server)
        watching.tick()
        assert status(sessions) == "queued"
