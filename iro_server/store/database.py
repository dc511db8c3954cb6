"""Opening the database, and reading pages of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import DDL, ColumnElement, Engine, create_engine, event, inspect, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.schema import CreateColumn

from iro_server.settings import Settings
from iro_server.store.tables import Base

Row = TypeVar("Row", bound=Base)
Sessions = sessionmaker[Session]


def open_database(settings: Settings) -> Sessions:
    """Sessions on the settings' database, its tables created where missing.

    What is loaded stays readable after commit. SQLite runs with a write-ahead log, fully synced: a committed row
    survives a crash.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(settings.url)
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine)
    Base.metadata.create_all(engine)
    _add_columns(engine)
    return sessionmaker(engine, expire_on_commit=False)


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection, _record) -> None:
        for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")


def _add_columns(engine: Engine) -> None:
    """Give tables of an earlier version the columns that have come since; all of them may be null or have a default."""
    known = inspect(engine)
    with engine.begin() as connection:
        for table in Base.metadata.tables.values():
            there = {column["name"] for column in known.get_columns(table.name)}
            for column in table.columns:
                if column.name not in there:
                    definition = CreateColumn(column).compile(dialect=engine.dialect)
                    connection.execute(DDL(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))


def find(session: Session, table: type[Row], id: str) -> Row | None:
    return session.scalar(select(table).where(table.id == id))


def page(
    session: Session,
    table: type[Row],
    where: Sequence[ColumnElement[bool]],
    limit: int,
    after: Row | None,
    ascending: bool,
) -> tuple[list[Row], bool]:
    """Up to ``limit`` rows that follow ``after``, newest first unless ``ascending``, and whether more follow."""
    query = select(table).where(*where).order_by(table.seq if ascending else table.seq.desc())
    if after is not None:
        query = query.where(table.seq > after.seq if ascending else table.seq < after.seq)
    rows = list(session.scalars(query.limit(limit + 1)))
    return rows[:limit], len(rows) > limit
