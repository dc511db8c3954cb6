"""Stored chat completions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

Long = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "completions",
        sa.Column("seq", Long, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("created_at", Long, nullable=False),
        sa.Column("project", sa.String, nullable=False, server_default="default", index=True),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("tags", sa.String, nullable=False),
        sa.Column("expires_at", Long, nullable=False, index=True),
    )
