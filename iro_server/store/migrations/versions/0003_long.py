"""Integers of 64 bits, which a file's bytes and a job's tokens may need; when a job last started, for the queue; what a
key may do, and until when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("started_at", sa.Double))
    op.add_column("api_keys", sa.Column("scopes", sa.JSON))
    op.add_column("api_keys", sa.Column("expires_at", sa.BigInteger().with_variant(sa.Integer, "sqlite")))
    if op.get_bind().dialect.name != "sqlite":  # whose integers have 64 bits
        _widen()


def _widen() -> None:
    tables = sa.inspect(op.get_bind())
    for table in tables.get_table_names():
        for column in tables.get_columns(table):
            if isinstance(column["type"], sa.INTEGER):
                op.alter_column(table, column["name"], type_=sa.BigInteger())
