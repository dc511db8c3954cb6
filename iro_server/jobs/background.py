"""Work that servers do beside requests: rows of a table, each held by one server at a time, which renews its lease.

A server that dies leaves its rows; once their leases are over another server, or the next one here, goes on with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from types import MappingProxyType
from typing import Generic, TypeVar

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from iro_server import JsonObject
from iro_server.concurrency.executors import in_thread
from iro_server.graders.remote import GraderServiceUnavailable
from iro_server.jobs import disk
from iro_server.jobs.records import LeaseLost
from iro_server.settings import Settings
from iro_server.store.clock import UnixTime
from iro_server.store.database import Sessions, find
from iro_server.store.tables import ApiKey, BackgroundRow, now

log = logging.getLogger("iro.jobs")
SLICE = 30.0  # seconds that a row keeps its place while another project's waits
MAX_TURNS = 100  # projects whose last turn is known
TRIES = 3  # of a row without progress: one that kills each server it comes to must not do so for ever
REQUEST_TIMEOUT = 600.0  # seconds


Row = TypeVar("Row", bound=BackgroundRow)


class Stopping(Exception):
    """The server stops, or the row is another's: what is under way is dropped, and done again by whoever takes it."""


class WorkFailed(Exception):
    """The work cannot be done. ``code`` says to a program what the message says to a person."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class TriesSpent(WorkFailed):
    """No server got on with the row."""

    def __init__(self) -> None:
        super().__init__(f"{TRIES} servers in turn ended while they worked on it", "server_died")


class Lease:
    """One server's hold on a row. ``check`` it before results that a stop may have spoiled are written.

    ``request_timeout``: seconds that a request to this server may take.
    """

    def __init__(
        self, sessions: Sessions, row: BackgroundRow, seconds: float, request_timeout: float = REQUEST_TIMEOUT
    ) -> None:
        self.sessions, self.table, self.id, self.attempt, self.seconds = (
            sessions,
            type(row),
            row.id,
            row.attempt,
            seconds,
        )
        self.project, self.since, self.request_timeout = row.project, time.monotonic(), request_timeout
        self.progressed = False  # since ``Background`` looked last
        self._lock = threading.Lock()
        self.stopped = False
        self._closers: list[Callable[[], None]] = []
        self._fail: Callable[[JsonObject], None] = partial(self.end, "failed")

    def write(self, session: Session, **columns: object) -> None:
        """Set columns of the row, in the transaction of ``session``. Raises LeaseLost unless it is still ours."""
        values = {"lease_until": UnixTime() + self.seconds} | columns
        change = update(self.table).where(*self._ours).values(**values).returning(self.table.id)
        if session.execute(change).first() is None:
            raise LeaseLost(f"{self.id} is not this server's any more")
        self.progressed = self.progressed or columns.get("tries") == 0  # as work writes with what it has stored

    @property
    def _ours(self) -> tuple[ColumnElement[bool], ...]:
        return self.table.id == self.id, self.table.attempt == self.attempt, self.table.status == "in_progress"

    def end(self, status: str, error: JsonObject | None = None, **columns: object) -> None:
        with self.sessions.begin() as session:
            self.write(session, status=status, error=error, finished_at=now(), **columns)

    def renew(self) -> None:
        with self.sessions.begin() as session:
            self.write(session)

    def spend_no_try(self) -> None:
        """Have the work tried again, once the lease is over, as if it had not been tried."""
        change = update(self.table).where(*self._ours, self.table.tries > 0).values(tries=self.table.tries - 1)
        with contextlib.suppress(SQLAlchemyError), self.sessions.begin() as session:
            session.execute(change)

    def forget_tries(self) -> None:
        """Count no try so far: the work got on. Unlike after ``write``, the row gives its place to no other."""
        with self.sessions.begin() as session:
            session.execute(update(self.table).where(*self._ours).values(tries=0))

    def give_back(self) -> None:
        with self.sessions.begin() as session:
            self.write(session, status="queued", lease_until=None, tries=0)

    def check(self) -> None:
        """Raises Stopping once it is to end."""
        if self.stopped:
            raise Stopping

    def on_failure(self, fail: Callable[[JsonObject], None]) -> None:
        """Have ``fail`` end the row with the error where the work fails, in place of ``end`` alone."""
        self._fail = fail

    def fail(self, error: JsonObject) -> None:
        self._fail(error)

    def on_stop(self, close: Callable[[], None]) -> None:
        """Have ``close`` called from another thread when the work is to stop, so that nothing is waited for."""
        with self._lock:
            self._closers.append(close)
            stopped = self.stopped
        if stopped:
            close()

    def stop(self) -> None:
        with self._lock:
            self.stopped, closers = True, list(self._closers)
        for close in closers:
            close()


def claim(
    sessions: Sessions,
    table: type[Row],
    seconds: float,
    besides: Collection[str] = (),
    turns: Mapping[str, float] = MappingProxyType({}),
    most_tries: int = TRIES,
) -> Row | None:
    """A row that waits, or that a server which died held, now ours: the oldest of the project whose turn it is. Of
    projects with as many rows under way, one without an entry in ``turns`` comes first, then the smallest entry.
    ``besides``: ids of rows that the caller works on, also where their leases are over. ``most_tries``: after so many a
    row fails instead."""
    if not _has_waiting_row(sessions, table):
        return None
    waiting = _waiting(table)
    with sessions.begin() as session:
        _give_up(session, table, most_tries, besides)
        running = _num_running(table)
        oldest = func.min(case((and_(waiting, table.id.not_in(besides)), table.seq)))
        turn = select(oldest).where(or_(waiting, table.status == "in_progress")).group_by(table.project)
        last_turn = [case(*((table.project == name, at) for name, at in turns.items()), else_=0.0)] if turns else []
        turn = turn.having(oldest.is_not(None)).order_by(running, *last_turn, oldest)
        if (seq := session.scalar(turn.limit(1))) is None:
            return None
        values = {"status": "in_progress", "attempt": table.attempt + 1, "tries": table.tries + 1}
        ours = update(table).where(table.seq == seq, waiting).values(**values, lease_until=UnixTime() + seconds)
        if session.execute(ours.returning(table.seq)).first() is None:
            return None  # another server was faster
        return session.scalar(select(table).where(table.seq == seq))


def is_needed_by_others(sessions: Sessions, table: type[BackgroundRow], project: str) -> bool:
    """Whether a row waits of a project that has fewer under way than ``project``."""
    if not _has_waiting_row(sessions, table):
        return False
    waiting = _waiting(table)
    counts = select(table.project, _num_running(table), func.count(case((waiting, 1))))
    counts = counts.where(or_(waiting, table.status == "in_progress")).group_by(table.project)
    with sessions() as session:
        counts_of = {name: (running, waiting) for name, running, waiting in session.execute(counts)}
    project_running, _ = counts_of.get(project, (0, 0))
    return any(waiting and running < project_running for running, waiting in counts_of.values())


def _num_running(table: type[BackgroundRow]) -> ColumnElement[int]:
    """Of a group of rows, those that a server holds."""
    return func.count(case((and_(table.status == "in_progress", table.lease_until >= UnixTime()), 1)))


def _has_waiting_row(sessions: Sessions, table: type[BackgroundRow]) -> bool:
    """One read, whose statement is built once: servers ask several times a second, mostly in vain."""
    with sessions() as session:
        return session.scalar(_first_waiting(table)) is not None


@cache
def _first_waiting(table: type[BackgroundRow]) -> Select[int]:
    return select(table.seq).where(_waiting(table)).limit(1)


def _waiting(table: type[BackgroundRow]) -> ColumnElement[bool]:
    """Queued, or left by a server that died: its lease is over."""
    left_over = and_(table.status == "in_progress", table.lease_until < UnixTime())
    return or_(table.status == "queued", left_over)


def _give_up(session: Session, table: type[BackgroundRow], most_tries: int, besides: Collection[str]) -> None:
    """Fail rows that have spent their tries, besides those with these ids."""
    spent = update(table).where(_waiting(table), table.tries >= most_tries, table.id.not_in(besides))
    session.execute(spent.values(status="failed", error=_shown_error(TriesSpent()), finished_at=now()))


def _shown_error(error: Exception) -> JsonObject:
    if isinstance(error, WorkFailed):
        return {"code": error.code, "message": str(error)}
    return {"code": "internal_error", "message": f"the server had an error: {error}"}


def check_key(sessions: Sessions, key_id: str | None) -> None:
    """Raise WorkFailed where the key that asked for the work does not work any more."""
    if key_id is None:
        return
    with sessions() as session:
        key = find(session, ApiKey, key_id)
    if key is not None and key.revoked_at is not None:
        raise WorkFailed("the API key that created it was revoked", "key_revoked")
    if key is not None and key.expires_at is not None and key.expires_at <= now():
        raise WorkFailed("the API key that created it has expired", "key_expired")


class Background(Generic[Row]):
    """One a server and table. ``run`` it as a task, until ``stopping`` is set.

    A row of work that is stored in steps gives its place back after ``SLICE`` seconds, once a step is stored, where a
    project with fewer rows under way waits; it goes on later.

    ``execute`` does a row's work in a thread, writes by the row's lease alone, and ends it. WorkFailed fails the row; a
    database or a grader service that is away, or a full disk, lets the lease run out, so that the work is tried again.
    ``most_tries``: of a row without progress; more than ``TRIES`` where ``execute`` ends a row after these itself, to
    keep what it has stored.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        table: type[Row],
        execute: Callable[[Row, Lease], None],
        at_once: int,
        most_tries: int = TRIES,
    ) -> None:
        self.settings, self.sessions, self.table, self.execute = settings, sessions, table, execute
        self.at_once, self.most_tries = at_once, most_tries
        self.database = ThreadPoolExecutor(1, f"{table.__tablename__}-leases")
        self.threads = ThreadPoolExecutor(max(1, at_once), table.__tablename__)
        self.leases: dict[str, Lease] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.turns: dict[str, float] = {}  # when a project last gave a place back, monotonic
        self.renewed = time.monotonic()

    async def run(self, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            try:
                await in_thread(self.database, self._renew)
                await in_thread(self.database, self._give_way)
                await self._start_waiting()
            except Exception:  # such as a database that is away
                log.exception("%s: no work could be taken; trying again", self.table.__tablename__)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), self.settings.job_poll)
        for lease in list(self.leases.values()):
            await in_thread(self.database, lease.stop)
        await asyncio.gather(*self.tasks)
        self.database.shutdown()
        self.threads.shutdown()

    async def _start_waiting(self) -> None:
        while len(self.leases) < self.at_once:
            held, turns = [*self.leases], dict(self.turns)
            row = await in_thread(self.database, self._claim, held, turns)
            if row is None:
                return
            lease = Lease(self.sessions, row, self.settings.lease, self.settings.request_timeout)
            self.leases[row.id] = lease
            task = asyncio.create_task(self._do(row, lease))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def _claim(self, held: Collection[str], turns: Mapping[str, float]) -> Row | None:
        return claim(self.sessions, self.table, self.settings.lease, held, turns, self.most_tries)

    async def _do(self, row: Row, lease: Lease) -> None:
        try:
            await in_thread(self.threads, self._work, row, lease)
        except Exception:
            log.exception("%s was broken off; it is tried again once its lease is over", row.id)
        finally:
            del self.leases[row.id]

    def _work(self, row: Row, lease: Lease) -> None:
        try:
            error = self._error_of(partial(self.execute, row, lease), row, lease)
            if error is not None and self._error_of(partial(lease.fail, error), row, lease) is not None:
                lease.end("failed", error)
        except LeaseLost as lost:  # cancelled, deleted, or taken by another server
            log.info("%s", lost)

    def _error_of(self, step: Callable[[], None], row: Row, lease: Lease) -> JsonObject | None:
        """Why the row is to fail after ``step``; None where it is not. The row is given back where the server stops,
        whatever its graders raise once they are closed. Raises LeaseLost, and what the work is tried again after."""
        try:
            step()
        except (LeaseLost, SQLAlchemyError):
            raise
        except Exception as error:
            if lease.stopped:
                lease.give_back()
                return None
            if isinstance(error, WorkFailed):
                return _shown_error(error)
            if isinstance(error, GraderServiceUnavailable) or disk.is_cause(error, self.settings.data_dir):
                lease.spend_no_try()
                raise
            log.error("%s failed", row.id, exc_info=error)
            return _shown_error(error)
        return None

    def _give_way(self) -> None:
        """Stop one row that has had its time, once a step of its work was stored, where another project waits."""
        leases = list(self.leases.values())
        progressed = [lease for lease in leases if lease.progressed and not lease.stopped]
        for lease in leases:
            lease.progressed = False
        if len(leases) < self.at_once:
            return
        for lease in progressed:
            over = time.monotonic() - lease.since > SLICE
            if over and is_needed_by_others(self.sessions, self.table, lease.project):
                log.info("%s gives way to another project's", lease.id)
                others = ((name, at) for name, at in self.turns.items() if name != lease.project)
                self.turns = dict([*others, (lease.project, time.monotonic())][-MAX_TURNS:])
                return lease.stop()

    def _renew(self) -> None:
        if time.monotonic() - self.renewed < self.settings.lease / 4:
            return
        for lease in list(self.leases.values()):
            try:
                lease.renew()
            except LeaseLost:
                lease.stop()
        self.renewed = time.monotonic()  # not where the database was away: the next call renews
