"""The queue: each job is taken once, oldest first, however many take at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
from sqlalchemy import select

from iro_server.jobs import records
from iro_server.settings import Settings
from iro_server.store.database import find, open_database
from iro_server.store.tables import DEFAULT_PROJECT, Event, Job

pytestmark = pytest.mark.both_databases

TAKERS, JOBS = 8, 40


@pytest.fixture
def sessions(tmp_path, database_url):
    return open_database(Settings(data_dir=tmp_path, database_url=database_url))


def queue(sessions, count: int) -> list[str]:
    rest = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "model_name": "m", "config": {}}
    ids = [f"ftjob-{number}" for number in range(count)]
    with sessions.begin() as session:
        session.add_all(Job(id=id, **rest) for id in ids)
    return ids


def test_of_many_that_take_at_once_each_job_goes_to_one(sessions):
    ids, together = queue(sessions, JOBS), Barrier(TAKERS)

    def take_all(server: int) -> list[str]:
        together.wait()
        mine, empty = [], 0
        while empty < 20:  # on SQLite two may look at the same job, and one goes away without
            job = records.take_next(sessions, f"server-{server}")
            mine += [job.id] if job else []
            empty += job is None
        return mine

    with ThreadPoolExecutor(TAKERS) as pool:
        taken = [id for mine in pool.map(take_all, range(TAKERS)) for id in mine]
    assert sorted(taken) == sorted(ids)
    with sessions() as session:
        assert {(job.status, job.attempt) for job in session.scalars(select(Job))} == {("running", 1)}
        assert len(session.scalars(select(Event)).all()) == JOBS


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_job_that_another_server_is_taking_is_passed_over_without_waiting(sessions):
    first, second = queue(sessions, 2)
    with sessions.begin() as other:
        other.scalar(select(Job).where(Job.id == first).with_for_update())
        assert records.take_next(sessions, "here").id == second
        assert records.take_next(sessions, "here") is None
    assert records.take_next(sessions, "here").id == first


def test_projects_take_turns_however_many_jobs_each_queued(sessions):
    rest = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "model_name": "m", "config": {}}
    with sessions.begin() as session:
        for project, count in (("many", 6), ("few", 3)):
            session.add_all(Job(id=f"{project}-{number}", project=project, **rest) for number in range(count))
            session.flush()
    order = []
    while job := records.take_next(sessions, "here"):
        order.append(job.id)
        records.fail(sessions, job, "x", "no matter")
    alternating = ["many-0", "few-0", "many-1", "few-1", "many-2", "few-2"]
    assert order == [*alternating, "many-3", "many-4", "many-5"]


def test_a_project_that_runs_nothing_goes_before_one_that_does(sessions):
    rest = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "model_name": "m", "config": {}}
    with sessions.begin() as session:
        session.add_all(Job(id=f"many-{number}", project="many", **rest) for number in range(4))
    first, second = (records.take_next(sessions, "here").id for _ in range(2))
    with sessions.begin() as session:
        session.add(Job(id="few-0", project="few", **rest))
    assert (first, second) == ("many-0", "many-1")
    assert records.take_next(sessions, "here").id == "few-0"


def test_a_queued_job_waits_for_its_own_projects_earlier_jobs(sessions):
    rest = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "model_name": "m", "config": {}}
    with sessions.begin() as session:
        session.add(Job(id="theirs", project="other", **rest))
    queue(sessions, 3)
    running = records.take_next(sessions, "here")  # the other project's, which was queued first
    assert running.id == "theirs" and records.take_next(sessions, "here").id == "ftjob-0"
    with sessions() as session:
        assert records.jobs_ahead(session, DEFAULT_PROJECT) == {"ftjob-1": 1, "ftjob-2": 2}
        assert records.jobs_ahead(session, "other") == {}


def test_the_time_that_a_job_ran_is_without_its_waiting_and_pauses(sessions, monkeypatch):
    clock = 1000.0
    monkeypatch.setattr(records, "time", SimpleNamespace(time=lambda: clock))
    [id] = queue(sessions, 1)
    for wait, run, end in ((50, 7, "paused"), (100, 5, "queued"), (20, 1, "succeeded")):
        clock += wait
        assert records.take_next(sessions, "here").id == id
        clock += run
        with sessions.begin() as session:
            assert records.move(session, id, "running", end)
            if end == "paused":
                assert records.move(session, id, "paused", "queued")
    with sessions() as session:
        assert find(session, Job, id).ran == 13
