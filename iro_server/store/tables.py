"""The database's tables. ``seq`` orders rows by creation; ``id`` is what users see."""

from __future__ import annotations

import secrets
import time
from typing import Any, Literal

from sqlalchemy import JSON, BigInteger, ForeignKey, Integer, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINISHED = ("succeeded", "failed", "cancelled")


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Unix time in whole seconds, as OpenAI's objects carry it."""
    return int(time.time())


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012

    seq: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int] = mapped_column(default=now)


class File(Base):
    """An uploaded file; its bytes lie in ``<data dir>/files/<id>``."""

    __tablename__ = "files"

    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]


class Job(Base):
    """A fine-tuning job and its place in the queue.

    ``config`` is what the worker hands to the job's ``execute``; ``search``, how its models search and sample by
    default, is known once a worker has read it. ``restarts`` counts workers that died; ``heartbeat`` grows while a
    worker lives.
    """

    __tablename__ = "jobs"

    status: Mapped[str] = mapped_column(default="queued", index=True)
    finished_at: Mapped[int | None] = mapped_column(default=None)
    model: Mapped[str]
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    suffix: Mapped[str | None]
    seed: Mapped[int]
    method: Mapped[dict[str, Any]]
    job_metadata: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    error: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    model_name: Mapped[str]
    config: Mapped[dict[str, Any]]
    search: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    restarts: Mapped[int] = mapped_column(default=0)
    heartbeat: Mapped[int] = mapped_column(default=0)


class Event(Base):
    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    type: Mapped[str]
    level: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class Checkpoint(Base):
    """The value functions after one step of a job, callable by ``model_name``. ``path`` is their bundle."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    step: Mapped[int]
    model_name: Mapped[str] = mapped_column(unique=True)
    path: Mapped[str]
    metrics: Mapped[dict[str, Any]]


class Model(Base):
    """An aligned model, ``id`` its name: the base model steered by the bundle at ``path``."""

    __tablename__ = "models"

    base: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    path: Mapped[str]
    search: Mapped[dict[str, Any]]
