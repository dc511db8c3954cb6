"""The bytes of stored answers and eval runs, for a project's quota; those of earlier rows count as 0."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

Long = sa.BigInteger().with_variant(sa.Integer, "sqlite")
INDEXED = {
    "responses": ("project", "expires_at", "bytes"),
    "completions": ("project", "expires_at", "bytes"),
    "eval_runs": ("project", "bytes"),
}


def upgrade() -> None:
    for table, columns in INDEXED.items():
        op.add_column(table, sa.Column("bytes", Long, nullable=False, server_default="0"))
        op.create_index(f"ix_{table}_bytes", table, list(columns))
