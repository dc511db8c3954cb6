"""`iro work` as a process of its own, beside a server that takes no jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from iro_server.jobs import presence
from iro_server.settings import Settings
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, start_job, wait_for


def environment(settings: Settings) -> dict[str, str]:
    names = ("data_dir", "align_entry", "job_poll", "heartbeat")
    return os.environ | {f"IRO_{name.upper()}": str(getattr(settings, name)) for name in names}


def iro(settings: Settings, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "iro_server", *arguments]
    return subprocess.run(command, env=environment(settings) | more, capture_output=True, text=True)


@contextmanager
def working(settings: Settings):
    process = subprocess.Popen([sys.executable, "-m", "iro_server", "work"], env=environment(settings))
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path, job_concurrency=0)


@pytest.mark.slow(11)
def test_a_server_that_takes_no_jobs_leaves_them_to_workers_which_hand_on_what_they_cannot_end(settings):
    with serving(settings, ByteEngine()) as client:
        jobs = client.fine_tuning.jobs
        job = start_job(client, GRADER | {"name": "slow"}, iterations=4)
        wait_for(lambda: jobs.retrieve(job).status == "queued")
        time.sleep(0.5)  # ten looks of the server's at its jobs
        assert jobs.retrieve(job).status == "queued"
        with working(settings) as first:
            wait_for(lambda: jobs.checkpoints.list(job).data)
            first.send_signal(signal.SIGTERM)
            assert first.wait(10) == 0
            assert jobs.retrieve(job).status == "queued"
        with working(settings):
            assert ended(client, job).status == "succeeded"
        told = [event.message for event in jobs.list_events(job, limit=100)]
        assert told.count("Checkpoint created at step 1") == 1


@pytest.mark.slow(6)
def test_a_worker_is_well_while_it_runs_and_its_database_answers(settings):
    assert iro(settings, "health", "--worker").returncode == 1
    with working(settings):
        wait_for(lambda: iro(settings, "health", "--worker").returncode == 0)
        away = {"IRO_DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
        unwell = iro(settings, "health", "--worker", **away)
        assert unwell.returncode == 1 and unwell.stderr.startswith(
            "Error: the database postgresql+psycopg://nobody@127"
        )
    assert "nothing on this machine runs the jobs" in iro(settings, "health", "--worker").stderr


def test_a_server_is_well_while_it_answers(settings):
    with serving(settings, ByteEngine()) as client:
        assert iro(settings, "health", "--port", str(client.base_url.port)).returncode == 0
        assert list(settings.data_dir.glob("servers/*")) and not presence.takes_jobs_here(settings.data_dir)
    gone = iro(settings, "health", "--port", str(client.base_url.port))
    assert gone.returncode == 1 and gone.stderr.startswith("Error: http://127.0.0.1:")


def test_a_worker_that_would_take_no_job_says_so(settings):
    refused = iro(settings, "work", IRO_JOB_CONCURRENCY="0")
    assert refused.returncode == 2 and "IRO_JOB_CONCURRENCY is 0" in refused.stderr
