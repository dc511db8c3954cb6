"""Stored responses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

Long = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("seq", Long, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("created_at", Long, nullable=False),
        sa.Column("project", sa.String, nullable=False, server_default="default", index=True),
        sa.Column("previous_id", sa.String),
        sa.Column("input", sa.JSON, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("expires_at", Long, nullable=False, index=True),
    )
