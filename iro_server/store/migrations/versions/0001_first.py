"""All tables as they were when migrations began.

A database from before that has some of them, maybe of an earlier form: it gets what is missing and keeps its rows.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import CreateColumn

revision = "0001"
down_revision = None

metadata = sa.MetaData()
Sequence = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _table(name: str, *rest: sa.schema.SchemaItem) -> None:
    sa.Table(
        name,
        metadata,
        *rest,
        sa.Column("seq", Sequence, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("created_at", sa.Integer, nullable=False),
    )


def _text(name: str, **options: Any) -> sa.Column:
    return sa.Column(name, sa.String, **({"nullable": False} | options))


def _number(name: str, **options: Any) -> sa.Column:
    return sa.Column(name, sa.Integer, **({"nullable": False} | options))


def _json(name: str, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.JSON, nullable=nullable)


def _project() -> sa.Column:
    return _text("project", server_default="default", index=True)


_table(
    "api_keys",
    _text("name"),
    _text("hash", unique=True),
    _text("hint"),
    _number("requests_per_minute", nullable=True),
    _number("tokens_per_minute", nullable=True),
    _number("concurrency", nullable=True),
    _number("revoked_at", nullable=True),
    _project(),
)
_table(
    "files",
    _text("filename"),
    _text("purpose"),
    _number("bytes"),
    _text("sha256", nullable=True),
    _number("expires_at", nullable=True),
    _project(),
)
_table(
    "uploads",
    _text("filename"),
    _text("purpose"),
    _number("bytes"),
    _text("status"),
    _number("expires_at"),
    _number("file_seconds", nullable=True),
    _text("file_id", nullable=True),
    _project(),
)
_table("parts", sa.Column("upload_id", sa.ForeignKey("uploads.id"), nullable=False, index=True), _number("bytes"))
_table(
    "jobs",
    _text("status", index=True),
    _number("finished_at", nullable=True),
    _text("model"),
    _text("training_file"),
    _text("validation_file", nullable=True),
    _text("suffix", nullable=True),
    _number("seed"),
    _json("method"),
    _json("metadata", nullable=True),
    _json("integrations", nullable=True),
    _json("error", nullable=True),
    _text("model_name"),
    _json("config"),
    _json("search", nullable=True),
    _json("result_files", nullable=True),
    _number("trained_tokens", nullable=True),
    _number("estimated_finish", nullable=True),
    _number("restarts"),
    _number("heartbeat"),
    _number("attempt", server_default="0"),
    _text("server", nullable=True),
    _project(),
)
_table(
    "events",
    sa.Column("job_id", sa.ForeignKey("jobs.id"), nullable=False, index=True),
    _text("type"),
    _text("level"),
    _text("message"),
    _json("data"),
)
_table(
    "checkpoints",
    sa.Column("job_id", sa.ForeignKey("jobs.id"), nullable=False, index=True),
    _number("step"),
    _text("model_name", unique=True),
    _text("path"),
    _json("metrics"),
    sa.UniqueConstraint("job_id", "step"),
)
_table(
    "models",
    _text("base"),
    sa.Column("job_id", sa.ForeignKey("jobs.id"), nullable=False),
    _text("path"),
    _json("search"),
    _project(),
)
_table("permissions", _text("model_name"), _text("project_id"), sa.UniqueConstraint("model_name", "project_id"))
_table(
    "webhook_endpoints",
    _text("name"),
    _text("url"),
    _json("event_types"),
    _text("secret"),
    _text("old_secret", nullable=True),
    _number("old_until", nullable=True),
    _number("updated_at"),
    _project(),
)
_table(
    "deliveries",
    sa.Column("endpoint_id", sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False, index=True),
    _json("payload"),
    _number("attempts"),
    sa.Column("due", sa.Double, index=True),
    _text("last_error", nullable=True),
)


def upgrade() -> None:
    connection = op.get_bind()
    there = sa.inspect(connection)
    present_tables = set(there.get_table_names())
    metadata.create_all(connection)
    for table in metadata.tables.values():
        if table.name not in present_tables:
            continue
        columns = {column["name"] for column in there.get_columns(table.name)}
        for column in table.columns:
            if column.name not in columns:  # may be null, or has a default
                definition = CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(sa.DDL(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))
        for index in table.indexes:
            index.create(connection, checkfirst=True)


def downgrade() -> None:
    metadata.drop_all(op.get_bind())
