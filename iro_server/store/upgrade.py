"""Bringing a database to the tables that this version of the server reads: alembic's migrations, one server at a
time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

log = logging.getLogger("iro.store")
LOCK = 0x49524F  # PostgreSQL's advisory lock: any number, the same for all servers


def upgrade(engine: Engine, migrate: bool = True) -> None:
    """Run the migrations that the database has not seen. Others that would run them wait, and find nothing to do.
    With ``migrate`` False only where it has seen none, and no server can be using it.

    ValueError where the database is ahead of this version, or behind it with ``migrate`` False; OperationalError where
    it does not answer.
    """
    if _at_head(engine):
        return
    if not migrate and (current := _current(engine)) is not None:
        raise ValueError(
            f"the database's tables are at revision {current}, this version's at {_head()}: use the version of Iro "
            "that the server runs, or stop the server and migrate the tables first (iro db upgrade)"
        )
    config = _config()
    with _alone(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    log.info("the database's tables are those of revision %s", _head())


def revisions(engine: Engine) -> tuple[str | None, str]:
    """The database's revision (None: no migration has run on it) and this version's."""
    return _current(engine), _head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _head() -> str:
    head = _scripts().get_current_head()
    assert head is not None
    return head


def _current(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _at_head(engine: Engine) -> bool:
    current = _current(engine)
    known_revisions = {script.revision for script in _scripts().walk_revisions()}
    if current is not None and current not in known_revisions:
        raise ValueError(f"the database is at revision {current}, which this version of Iro does not know: update Iro")
    return current == _head()


@contextmanager
def _alone(engine: Engine) -> Iterator[Connection]:
    """A transaction, and no other server's beside it."""
    if engine.dialect.name == "sqlite":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")  # a table that is altered is dropped on the way
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            finally:
                connection.exec_driver_sql("PRAGMA foreign_keys=ON")
    else:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL statement_timeout = 0"))  # a large table takes its time
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            yield connection
