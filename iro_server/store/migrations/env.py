"""What alembic runs a migration in: the connection of `upgrade.py` or, from alembic's own command line, one of its own
to the settings' database."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine

from iro_server.settings import Settings
from iro_server.store.tables import Base


def migrate(connection: Connection) -> None:
    # SQLite alters a table by copying it
    context.configure(connection, target_metadata=Base.metadata, render_as_batch=connection.dialect.name == "sqlite")
    with context.begin_transaction():
        context.run_migrations()


if (shared_connection := context.config.attributes.get("connection")) is not None:
    migrate(shared_connection)
else:
    with create_engine(Settings().url).begin() as new_connection:
        migrate(new_connection)
