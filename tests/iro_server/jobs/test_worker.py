"""What the process of a job notes of how its models search and sample."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iro_server.jobs import worker
from iro_server.store.database import find, open_database
from iro_server.store.tables import Job
from tests.iro_server.api.serving import GRADER, settings_for
from tests.iro_server.jobs.fake_job import Config


class Interrupted(Exception):
    pass


def test_a_job_that_goes_on_keeps_the_length_that_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints are called before the second worker reports the length again."""
    settings = settings_for(tmp_path)
    sessions = open_database(settings)
    config = {"training_file": "rows.jsonl", "grader": GRADER, "max_tokens": "auto"}
    job = Job(id="ftjob-1", status="running", model="bytes", training_file="file-1", seed=1, config=config, attempt=1)
    job.method, job.model_name = {"type": "reinforcement"}, "ft:bytes:iro::1"
    with sessions.begin() as session:
        session.add(job)

    def execute(*_: Any, on_event: Any, **__: Any) -> None:
        if not attempts:
            on_event({"type": "defaults", "data": {"max_tokens": 20}})
        attempts.append(1)
        raise Interrupted

    attempts: list[int] = []
    monkeypatch.setattr(worker, "load_alignment_job", lambda _: SimpleNamespace(Config=Config, execute=execute))
    for _ in range(2):
        with sessions() as session:
            stored = find(session, Job, "ftjob-1")
        with pytest.raises(Interrupted):
            worker.Worker(settings, sessions, "ftjob-1", 1)._execute(stored)
    with sessions() as session:
        assert find(session, Job, "ftjob-1").search["max_tokens"] == 20 and len(attempts) == 2
