"""What a job's worker is doing, and the request that it is traced from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("stage", sa.String))
    op.add_column("jobs", sa.Column("grading", sa.JSON))
    op.add_column("jobs", sa.Column("traceparent", sa.String))
