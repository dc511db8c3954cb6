"""The disk of jobs that ended without a worker that could free it."""

from __future__ import annotations

import time

import pytest

from iro_server.jobs import leftovers, lock
from iro_server.jobs.leftovers import discard_leftovers
from iro_server.settings import Settings
from iro_server.store.database import open_database
from iro_server.store.tables import FINISHED, File, Job
from tests.iro_server.api.serving import settings_for


@pytest.mark.parametrize(
    ("status", "days_ago", "is_freed"),
    [
        ("cancelled", 0, True),
        ("failed", 1, True),
        ("cancelled", 30, False),
        ("paused", None, False),
        ("succeeded", 0, False),
    ],
)
def test_what_only_a_continued_run_would_read_is_removed(tmp_path, status, days_ago, is_freed):
    settings = settings_for(tmp_path)
    sessions = open_database(settings)
    rest = {"model": "bytes", "training_file": "f", "seed": 1, "method": {}, "model_name": "m", "config": {}}
    finished_at = None if days_ago is None else int(time.time() - days_ago * 24 * 3600)
    with sessions.begin() as session:
        session.add(Job(id="ftjob-1", status=status, finished_at=finished_at, **rest))
        session.add(Job(id="ftjob-never-run", status="cancelled", finished_at=int(time.time()), **rest))
    run = settings.job_dir("ftjob-1") / "run"
    run.mkdir(parents=True)
    for name in ("config.json", "states"):
        (run / name).write_text("{}")
    with lock.hold(settings.job_dir("ftjob-1")):
        discard_leftovers(settings, sessions)
        assert (run / "states").exists()  # its worker has not stopped yet
    discard_leftovers(settings, sessions)
    assert (run / "states").exists() != is_freed and (run / "config.json").exists()


def test_a_job_whose_storage_is_away_hinders_no_other(tmp_path, monkeypatch, caplog):
    settings = settings_for(tmp_path)
    sessions = open_database(settings)
    rest = {"model": "bytes", "training_file": "file-gone", "seed": 1, "method": {}, "config": {}, "status": "failed"}
    with sessions.begin() as session:
        for id in ("ftjob-1", "ftjob-2"):
            session.add(Job(id=id, finished_at=int(time.time()), model_name=id, **rest))
            settings.job_dir(id).mkdir(parents=True)
            (settings.job_dir(id) / "training_file.jsonl").write_text("{}")
    freed: list[str] = []

    def discard(settings: Settings, job_id: str) -> None:
        if job_id == "ftjob-1":
            raise OSError("storage s3://bucket cannot be used")
        freed.append(job_id)

    monkeypatch.setattr(leftovers, "discard", discard)
    discard_leftovers(settings, sessions)
    assert freed == ["ftjob-2"] and "could not free the disk of ftjob-1" in caplog.text
    assert not list(settings.data_dir.glob("jobs/*/training_file.jsonl"))


@pytest.mark.parametrize(
    ("status", "remaining"),
    [(status, ["training_file.jsonl"]) for status in FINISHED]
    + [("paused", ["training_file.jsonl", "validation_file.jsonl"])],
)
def test_an_ended_job_has_its_rows_for_as_long_as_its_file_is_stored(tmp_path, status, remaining):
    settings = settings_for(tmp_path)
    sessions = open_database(settings)
    rest = {"model": "bytes", "seed": 1, "method": {}, "model_name": "m", "config": {}, "status": status}
    with sessions.begin() as session:
        session.add(File(id="file-1", filename="rows.jsonl", purpose="fine-tune", bytes=2))
        session.add(Job(id="ftjob-1", training_file="file-1", validation_file="file-2", **rest))
    folder = settings.job_dir("ftjob-1")
    folder.mkdir(parents=True)
    for name in ("training_file.jsonl", "validation_file.jsonl"):
        (folder / name).write_text("{}")
    discard_leftovers(settings, sessions)
    assert sorted(path.name for path in folder.glob("*.jsonl")) == remaining
