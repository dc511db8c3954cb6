"""What ``iro health --worker`` says of the database."""

from __future__ import annotations

import socket
import time

from iro_server.jobs import health, presence
from iro_server.settings import Settings


def test_a_database_that_accepts_and_says_nothing_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(health, "SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent, presence.present(tmp_path):
        url = f"postgresql+psycopg://iro@127.0.0.1:{silent.getsockname()[1]}/iro"
        started = time.monotonic()
        problem = health.worker_problem(Settings(data_dir=tmp_path, database_url=url))
    assert problem is not None and "cannot be used" in problem and time.monotonic() - started < 30


def test_a_machine_that_takes_jobs_and_reaches_its_database_is_well(tmp_path):
    settings = Settings(data_dir=tmp_path)
    assert "nothing on this machine runs the jobs" in (health.worker_problem(settings) or "")
    with presence.present(tmp_path):
        assert health.worker_problem(settings) is None
