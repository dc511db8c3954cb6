"""Opening the database, and reading pages of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from sqlalchemy import ColumnElement, Engine, create_engine, event, select
from sqlalchemy.orm import Session, sessionmaker

from iro_server.settings import Settings
from iro_server.store.tables import Base

Row = TypeVar("Row", bound=Base)
Sessions = sessionmaker[Session]


def open_database(settings: Settings) -> Sessions:
    """Sessions on the settings' database, its tables created where missing.

    What is loaded stays readable after commit. SQLite runs with a write-ahead log, fully synced: a committed row
    survives a crash.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = create_engine(settings.url)
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine)
    Base.metadata.create_all(engine)
    return sessionmaker(engine, expire_on_commit=False)


def _tune_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection, _record) -> None:
        for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")


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
