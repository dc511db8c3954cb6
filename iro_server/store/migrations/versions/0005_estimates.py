"""Estimates of jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

Long = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "estimates",
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
        sa.Column("job_id", sa.String, sa.ForeignKey("jobs.id")),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("training_file", sa.String, nullable=False),
        sa.Column("rows", Long, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("prompts", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON),
    )
