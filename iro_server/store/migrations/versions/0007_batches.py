"""Batches of requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

Long = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "batches",
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
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("input_file_id", sa.String, nullable=False),
        sa.Column("completion_window", sa.String, nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("output_seconds", Long),
        sa.Column("expires_at", Long, nullable=False),
        sa.Column("in_progress_at", Long),
        sa.Column("finalizing_at", Long),
        sa.Column("cancelling_at", Long),
        sa.Column("model", sa.String),
        sa.Column("total", Long, nullable=False, server_default="0"),
        sa.Column("completed", Long, nullable=False, server_default="0"),
        sa.Column("failed", Long, nullable=False, server_default="0"),
        sa.Column("segments", sa.JSON, nullable=False),
        sa.Column("usage", sa.JSON, nullable=False),
        sa.Column("output_file_id", sa.String),
        sa.Column("error_file_id", sa.String),
    )
