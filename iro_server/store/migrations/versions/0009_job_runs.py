"""Runs of batch jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

Long = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "job_runs",
        sa.Column("seq", Long, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("created_at", Long, nullable=False),
        sa.Column("project", sa.String, nullable=False, server_default="default", index=True),
        sa.Column("status", sa.String, nullable=False, server_default="queued", index=True),
        sa.Column("finished_at", Long),
        sa.Column("error", sa.JSON),
        sa.Column("key_id", sa.String),
        sa.Column("attempt", Long, nullable=False, server_default="0"),
        sa.Column("tries", Long, nullable=False, server_default="0"),
        sa.Column("lease_until", sa.Double),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String),
        sa.Column("preset", sa.String),
        sa.Column("config", sa.JSON, nullable=False),
    )
