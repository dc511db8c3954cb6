"""Jobs and locks on a disk that is full, which a worker may find before it has begun."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from iro_server.jobs import disk, lock, presence
from iro_server.jobs.supervisor import Worker
from iro_server.store.database import find, open_database
from iro_server.store.tables import Job
from tests.iro_server.api.serving import settings_for
from tests.iro_server.jobs.supervised import messages, running_job, supervisor


def test_a_worker_that_dies_on_a_full_disk_pauses_its_job(tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    sessions = open_database(settings)
    watching = supervisor(settings, sessions)
    watching.server = "this-server"
    job = running_job(sessions, watching.server)
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    process.wait()
    watching.workers[job.id] = Worker(settings.job_dir(job.id), job.attempt, process)
    monkeypatch.setattr(disk, "ROOM", 2**62)
    watching.tick()
    assert not watching.workers and messages(sessions, "error") == [disk.PAUSED]
    with sessions() as session:
        paused = find(session, Job, job.id)
    assert (paused.status, paused.server, paused.restarts) == ("paused", None, 0)


def full_pwrite(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_lock_is_held_though_its_holder_cannot_be_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", full_pwrite)
    with lock.hold(tmp_path) as held:
        assert held and lock.held(tmp_path) and lock.holder(tmp_path) is None


def test_a_server_is_present_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", full_pwrite)
    with presence.present(tmp_path) as server:
        assert presence.takes_jobs_here(tmp_path) and presence.gone(tmp_path, server) is False


def test_other_errors_of_a_lock_are_raised(tmp_path, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="Input/output error"), lock.hold(tmp_path):
        pass
