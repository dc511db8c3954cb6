"""Evals, their runs, and the items of those."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

Long = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "evals",
        *_row(),
        _project(),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("data_source_config", sa.JSON, nullable=False),
        sa.Column("testing_criteria", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON),
    )
    op.create_table(
        "eval_runs",
        *_row(),
        _project(),
        *_lease(),
        _reference("eval_id", "evals.id"),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("model", sa.String),
        sa.Column("data_source", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON),
        sa.Column("sampling", sa.JSON, nullable=False),
        sa.Column("counts", sa.JSON, nullable=False),
        sa.Column("criteria", sa.JSON, nullable=False),
        sa.Column("usage", sa.JSON, nullable=False),
    )
    op.create_table(
        "eval_items",
        *_row(),
        _reference("run_id", "eval_runs.id"),
        sa.Column("position", Long, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("item", sa.JSON, nullable=False),
        sa.Column("sample", sa.JSON),
        sa.Column("results", sa.JSON),
        sa.UniqueConstraint("run_id", "position"),
    )


def _row() -> list[sa.Column]:
    return [
        sa.Column("seq", Long, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("created_at", Long, nullable=False),
    ]


def _project() -> sa.Column:
    return sa.Column("project", sa.String, nullable=False, server_default="default", index=True)


def _lease() -> list[sa.Column]:
    return [
        sa.Column("status", sa.String, nullable=False, server_default="queued", index=True),
        sa.Column("finished_at", Long),
        sa.Column("error", sa.JSON),
        sa.Column("key_id", sa.String),
        sa.Column("attempt", Long, nullable=False, server_default="0"),
        sa.Column("tries", Long, nullable=False, server_default="0"),
        sa.Column("lease_until", sa.Double),
    ]


def _reference(name: str, target: str) -> sa.Column:
    return sa.Column(name, sa.String, sa.ForeignKey(target, ondelete="CASCADE"), nullable=False, index=True)
