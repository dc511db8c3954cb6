"""Rows that servers hold by a lease: whose turn it is, who may write, and what a stop or a death leaves."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import time
from types import SimpleNamespace

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from iro_server import JsonObject
from iro_server.graders.remote import GraderServiceUnavailable
from iro_server.jobs import background
from iro_server.jobs.background import TRIES, Background, Lease, Stopping, WorkFailed, claim
from iro_server.jobs.records import LeaseLost
from iro_server.settings import Settings
from iro_server.store.database import find, open_database
from iro_server.store.tables import Estimate


@pytest.fixture
def settings(tmp_path, database_url):
    return Settings(data_dir=tmp_path, database_url=database_url, job_poll=0.02, lease=30)


@pytest.fixture
def sessions(settings):
    return open_database(settings)


def add(sessions, id: str, project: str = "default", **fields) -> None:
    plain = {"model": "m", "training_file": "f", "rows": 1, "config": {}, "prompts": []}
    with sessions.begin() as session:
        session.add(Estimate(id=id, project=project, **plain, **fields))


def row(sessions, id: str) -> Estimate:
    with sessions() as session:
        return find(session, Estimate, id)


def test_projects_take_turns_and_a_row_has_one_holder(sessions):
    for id, project in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        add(sessions, id, project)
    order = [claim(sessions, Estimate, 30).id for _ in range(3)]
    assert order == ["a1", "b1", "a2"] and claim(sessions, Estimate, 30) is None


def test_a_row_whose_holder_died_is_taken_and_the_dead_one_may_not_write(sessions):
    add(sessions, "a")
    dead = Lease(sessions, claim(sessions, Estimate, 30), -1)
    assert claim(sessions, Estimate, 30) is None
    dead.renew()  # for -1 s: the lease is over
    heir = Lease(sessions, claim(sessions, Estimate, 30), 30)
    with pytest.raises(LeaseLost):
        dead.end("completed")
    heir.end("completed", result={"verdict": "go"})
    assert (row(sessions, "a").status, row(sessions, "a").result) == ("completed", {"verdict": "go"})


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_lease_is_the_same_for_a_machine_whose_clock_differs(sessions, monkeypatch, seconds):
    add(sessions, "held")
    add(sessions, "over")
    claim(sessions, Estimate, 30), claim(sessions, Estimate, -1)
    monkeypatch.setattr(background, "time", SimpleNamespace(time=lambda: time.time() + seconds))
    assert claim(sessions, Estimate, 30).id == "over"
    assert claim(sessions, Estimate, 30) is None


def test_a_row_that_kills_each_server_is_given_up(sessions):
    add(sessions, "a")
    for _ in range(TRIES):
        assert claim(sessions, Estimate, -1).id == "a"
    assert claim(sessions, Estimate, 30) is None
    assert (row(sessions, "a").status, row(sessions, "a").error["code"]) == ("failed", "server_died")


def test_a_row_whose_holder_works_on_is_not_given_up_once_its_lease_is_over(sessions):
    add(sessions, "a", tries=TRIES - 1)
    lease = Lease(sessions, claim(sessions, Estimate, -1), 30)
    assert claim(sessions, Estimate, 30, besides=["a"]) is None
    lease.end("completed")
    assert row(sessions, "a").status == "completed"


def test_a_lease_whose_renewal_failed_is_renewed_before_a_row_is_taken(settings, sessions, monkeypatch):
    add(sessions, "a")
    work = Background(settings, sessions, Estimate, lambda estimate, lease: None, 1)
    work.leases["a"] = Lease(sessions, claim(sessions, Estimate, 30), 30)
    work.renewed = -math.inf
    renew, errors = Lease.renew, [OperationalError("UPDATE", {}, Exception("the database is away"))]

    def fail_once(lease: Lease) -> None:
        if errors:
            raise errors.pop()
        renew(lease)

    monkeypatch.setattr(Lease, "renew", fail_once)
    with pytest.raises(OperationalError):
        work._renew()
    before = row(sessions, "a").lease_until
    work._renew()
    assert row(sessions, "a").lease_until > before


def run(settings, sessions, execute, seconds: float = 10.0) -> None:
    """A server's background work until no row is open, or for so long."""

    async def until_done() -> None:
        stopping = asyncio.Event()
        work = asyncio.create_task(Background(settings, sessions, Estimate, execute, 1).run(stopping))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and open_rows(sessions):
            await asyncio.sleep(0.02)
        stopping.set()
        await work

    asyncio.run(until_done())


def open_rows(sessions) -> bool:
    with sessions() as session:
        waiting = select(Estimate.id).where(Estimate.status.in_(("queued", "in_progress")))
        return session.scalar(waiting) is not None


def test_what_cannot_be_done_fails_and_what_breaks_does_not_stop_the_others(settings, sessions):
    for id in ("refused", "broken", "good"):
        add(sessions, id)

    def execute(estimate: Estimate, lease: Lease) -> None:
        if estimate.id == "refused":
            raise WorkFailed("no model", "no_model")
        if estimate.id == "broken":
            raise KeyError("x")
        lease.end("completed")

    run(settings, sessions, execute)
    statuses = {id: row(sessions, id).status for id in ("refused", "broken", "good")}
    assert statuses == {"refused": "failed", "broken": "failed", "good": "completed"}
    assert row(sessions, "refused").error == {"code": "no_model", "message": "no model"}
    assert row(sessions, "broken").error["code"] == "internal_error"


@pytest.mark.parametrize("raised", [Stopping, RuntimeError])
def test_a_server_that_stops_gives_its_row_back_whatever_the_work_raises_then(settings, sessions, raised):
    add(sessions, "a")

    def execute(estimate: Estimate, lease: Lease) -> None:
        closed: list[bool] = []
        lease.on_stop(lambda: closed.append(True))
        while not closed:
            time.sleep(0.01)
        raise raised

    run(settings, sessions, execute, seconds=0.5)
    after = row(sessions, "a")
    assert (after.status, after.tries, after.lease_until) == ("queued", 0, None)


def test_work_that_is_cancelled_hears_of_it(settings, sessions):
    add(sessions, "a")
    short = settings.model_copy(update={"lease": 0.4})

    def execute(estimate: Estimate, lease: Lease) -> None:
        with sessions.begin() as session:
            session.execute(update(Estimate).values(status="canceled"))
        while True:
            lease.check()
            time.sleep(0.01)

    run(short, sessions, execute, seconds=1.5)
    assert row(sessions, "a").status == "canceled"


def test_a_project_whose_row_is_long_gives_way_to_others(settings, sessions, monkeypatch):
    monkeypatch.setattr(background, "SLICE", 0.1)
    for id, project in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("c1", "c")):
        add(sessions, id, project)
    order: list[str] = []

    def execute(estimate: Estimate, lease: Lease) -> None:
        order.append(estimate.id)
        steps = 2000 if estimate.project in "ab" and order.count(estimate.id) == 1 else 1
        for _ in range(steps):
            time.sleep(0.01)
            lease.check()
            with sessions.begin() as session:
                lease.write(session, tries=0)
        lease.end("completed")

    run(settings, sessions, execute, seconds=60)
    assert order[:4] == ["a1", "b1", "c1", "a1"] and set(order[4:]) == {"b1", "a2"}
    assert not open_rows(sessions)


def test_work_that_stores_no_step_and_work_beside_which_nobody_waits_go_on(settings, sessions, monkeypatch):
    monkeypatch.setattr(background, "SLICE", 0.1)
    for id, project in (("a1", "a"), ("b1", "b"), ("a2", "a")):
        add(sessions, id, project)
    order: list[str] = []

    def execute(estimate: Estimate, lease: Lease) -> None:
        order.append(estimate.id)
        for _ in range(40):
            time.sleep(0.01)
            lease.check()
            if estimate.id == "a2":  # the last one
                with sessions.begin() as session:
                    lease.write(session, tries=0)
        lease.end("completed")

    run(settings, sessions, execute, seconds=60)
    assert order == ["a1", "b1", "a2"]


FULL_DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [FULL_DISK, GraderServiceUnavailable("http://graders: ConnectError")])
def test_a_full_disk_and_a_grader_service_that_is_away_spend_no_try(settings, sessions, error):
    add(sessions, "a", tries=1)
    tries = []

    def execute(estimate: Estimate, lease: Lease) -> None:
        tries.append(estimate.tries)
        if len(tries) <= TRIES:
            raise error
        lease.end("completed")

    run(settings.model_copy(update={"lease": 0.1}), sessions, execute)
    assert row(sessions, "a").status == "completed" and tries == [2] * (TRIES + 1)


def test_a_row_fails_as_its_executor_has_it_fail(settings, sessions):
    for id in ("whole", "broken", "full"):
        add(sessions, id)
    full = [FULL_DISK]

    def execute(estimate: Estimate, lease: Lease) -> None:
        def fail(error: JsonObject) -> None:
            if estimate.id == "broken":
                raise KeyError("y")
            if estimate.id == "full" and full:
                raise full.pop()
            lease.end("failed", error, result={"kept": 1})

        lease.on_failure(fail)
        raise WorkFailed("no model", "no_model")

    run(settings.model_copy(update={"lease": 0.1}), sessions, execute)
    rows = [row(sessions, id) for id in ("whole", "broken", "full")]
    assert [(each.status, each.error["code"]) for each in rows] == [("failed", "no_model")] * 3
    assert [each.result for each in rows] == [{"kept": 1}, None, {"kept": 1}]


def test_a_row_that_its_executor_ends_comes_to_it_after_its_tries_and_not_for_ever(sessions):
    add(sessions, "a", tries=TRIES)
    for tries in range(TRIES + 1, 2 * TRIES + 1):
        assert claim(sessions, Estimate, -1, most_tries=2 * TRIES).tries == tries
    assert claim(sessions, Estimate, 30, most_tries=2 * TRIES) is None
    assert row(sessions, "a").error["code"] == "server_died"
