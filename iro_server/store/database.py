"""Opening the database, and reading pages of it."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TypeVar

from sqlalchemy import ColumnElement, Engine, ExceptionContext, create_engine, event, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

from iro_server import JsonObject
from iro_server.settings import Settings
from iro_server.store.tables import Base

Row = TypeVar("Row", bound=Base)
Sessions = sessionmaker[Session]
NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")  # as JSON writes it, its backslash not itself escaped
PAGE_BYTES = 4 * 2**20  # of a list's rows, as JSON
ROWS_READ_AT_ONCE = 16
SQLITE_PATIENCE = 30  # seconds that a statement waits for another server's
NOT_PERMITTED = "42501"  # SQLSTATE of what the role lacks a privilege for, as ordinary ones from PostgreSQL 15 on
READ_ONLY = "25006"  # SQLSTATE of a write to a standby, which a primary may be after a failover


def open_database(settings: Settings, migrate: bool = True) -> Sessions:
    """Sessions on the settings' database, its tables those of this version.

    ConnectionError where the database does not answer or refuses; ValueError where its URL is wrong, its driver is not
    installed, a later version has changed its tables, or, with ``migrate`` False, they are an earlier version's.
    """
    from iro_server.store.upgrade import upgrade  # alembic, which a job's worker does without

    with reachable(connect(settings)) as engine:
        upgrade(engine, migrate)
    return sessions_on(engine)


@contextmanager
def reachable(engine: Engine) -> Iterator[Engine]:
    """ConnectionError, in a line, where the database does not answer, or refuses what is asked of it."""
    try:
        yield engine
    except DBAPIError as error:
        url, why = engine.url.render_as_string(), " ".join(str(error.orig).split())
        if getattr(error.orig, "sqlstate", None) == NOT_PERMITTED:
            why += "; grant CREATE on schema public to that role, or name one that has it"
        raise ConnectionError(f"the database {url} cannot be used: {why}") from error


def is_unavailable(error: BaseException) -> bool:
    """Whether the error passes once the database, or its new primary after a failover, answers."""
    if isinstance(error, OperationalError | TimeoutError):  # TimeoutError: all connections are in use
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated


def sessions_on(engine: Engine) -> Sessions:
    """What is loaded stays readable after commit."""
    return sessionmaker(engine, expire_on_commit=False)


def connect(settings: Settings) -> Engine:
    """The settings' database, which nobody has called yet. SQLite runs with a write-ahead log, fully synced: a
    committed row survives a crash. ValueError where the URL is wrong or its driver is not installed."""
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        url = make_url(settings.url)
        if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
            raise ArgumentError("a database in memory is none that servers and workers share")
        engine = create_engine(url, json_serializer=_json, **_options(settings))
    except ModuleNotFoundError as error:
        extra = ": pip install 'iro-align[postgres]'" if settings.url.startswith("postgres") else ""
        raise ValueError(f"database_url needs the Python package {error.name}, which is not installed{extra}") from None
    except (ArgumentError, NoSuchModuleError, ValueError) as error:  # a ValueError of a port that is no number
        examples = "postgresql+psycopg://user:password@host:5432/name or sqlite:////folder/file"
        raise ValueError(f"database_url: {error}; give one such as {examples}") from None
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine)
    if engine.dialect.name == "postgresql":
        _bound_statements(engine, settings.database_statement_timeout)
        _leave_standbys(engine)
    return engine


def _options(settings: Settings) -> JsonObject:
    """A connection is tried before it is used: a database that was started again would fail each once."""
    pool: JsonObject = {"pool_size": settings.database_connections, "max_overflow": 0, "pool_pre_ping": True}
    pool["pool_timeout"] = settings.database_timeout
    if not settings.url.startswith("postgresql"):
        return pool
    return pool | {"connect_args": {"connect_timeout": math.ceil(settings.database_timeout)}}


def _json(value: object) -> str:
    """PostgreSQL reads no member of an object in which a text holds NUL: as ``tables.Text``."""
    return NUL.sub(r"\1\\ufffd", json.dumps(value))


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in (f"busy_timeout={1000 * SQLITE_PATIENCE}", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        _write_ahead(connection)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY


@retry(retry=retry_if_exception(_is_busy), stop=stop_after_delay(SQLITE_PATIENCE), wait=wait_fixed(0.01), reraise=True)
def _write_ahead(connection: sqlite3.Connection) -> None:
    """Waits for servers that make the same new database: the change of journal does not, whatever ``busy_timeout``."""
    connection.execute("PRAGMA journal_mode=WAL")


def _bound_statements(engine: Engine, seconds: float) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection, _record) -> None:
        connection.execute(f"SET statement_timeout = {round(1000 * seconds)}")
        connection.commit()


def _leave_standbys(engine: Engine) -> None:
    """Close connections to a server that takes no writes: the next one may lead to the primary."""

    @event.listens_for(engine, "handle_error")
    def disconnect(context: ExceptionContext) -> None:
        if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
            context.is_disconnect = True


def find(session: Session, table: type[Row], id: str) -> Row | None:
    return session.scalar(select(table).where(table.id == id))


def page(
    session: Session,
    table: type[Row],
    show: Callable[[Row], JsonObject],
    where: Sequence[ColumnElement[bool]],
    limit: int,
    after: Row | None,
    ascending: bool,
) -> tuple[list[JsonObject], bool]:
    """Up to ``limit`` rows that follow ``after`` as ``show`` gives them, newest first unless ``ascending``, and whether
    more follow. A page ends before its JSON takes over PAGE_BYTES, after one row at the least."""
    query = select(table).where(*where).order_by(table.seq if ascending else table.seq.desc())
    if after is not None:
        query = query.where(table.seq > after.seq if ascending else table.seq < after.seq)
    query = query.limit(limit + 1).execution_options(yield_per=ROWS_READ_AT_ONCE)
    items: list[JsonObject] = []
    size = 0
    with closing(session.scalars(query)) as rows:
        for row in rows:
            item = show(row)
            size += len(json.dumps(item))
            if len(items) == limit or (items and size > PAGE_BYTES):
                return items, True
            items.append(item)
    return items, False
