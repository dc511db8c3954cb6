"""The database's tables. ``seq`` orders rows by creation; ``id`` is what users see."""

from __future__ import annotations

import secrets
import time
from typing import Any, Literal, get_args

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    TypeDecorator,
    UniqueConstraint,
    or_,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from iro_server import JsonObject

JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
JOB_STATUSES: tuple[JobStatus, ...] = get_args(JobStatus)
DEFAULT_PROJECT = "default"  # whose everything is that needs no key
FINISHED = ("succeeded", "failed", "cancelled")


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Unix time in whole seconds, as OpenAI's objects carry it."""
    return int(time.time())


class Text(TypeDecorator[str]):
    """Text without NUL, which PostgreSQL cannot hold: a replacement character stands in its place."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value and value.replace("\0", "\ufffd")


Json = JSON(none_as_null=True)
Long = BigInteger().with_variant(Integer, "sqlite")  # whose integers have 64 bits by any name


COLUMNS: dict[Any, Any] = {JsonObject: Json, list[str]: Json, list[Any]: Json, int: Long, str: Text}


class Base(DeclarativeBase):
    type_annotation_map = COLUMNS

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int] = mapped_column(default=now)


class Owned:
    """What belongs to a project; keys of other projects do not see it."""

    project: Mapped[str] = mapped_column(default=DEFAULT_PROJECT, server_default=DEFAULT_PROJECT, index=True)


class Sized:
    """``bytes``: of what the row keeps of a request and its answer, for the project's quota."""

    bytes: Mapped[int] = mapped_column(default=0, server_default="0")


class ApiKey(Base, Owned):
    """A key, of which only the hash is kept. ``hint``: its last characters. Limits None: the server's own; ``scopes``
    None: all there are."""

    __tablename__ = "api_keys"

    name: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    hint: Mapped[str]
    requests_per_minute: Mapped[int | None] = mapped_column(default=None)
    tokens_per_minute: Mapped[int | None] = mapped_column(default=None)
    concurrency: Mapped[int | None] = mapped_column(default=None)
    scopes: Mapped[list[str] | None] = mapped_column(default=None)
    expires_at: Mapped[int | None] = mapped_column(default=None)
    revoked_at: Mapped[int | None] = mapped_column(default=None)


class File(Base, Owned):
    """A stored file; its bytes lie in ``<data dir>/files/<id>``."""

    __tablename__ = "files"

    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str | None] = mapped_column(default=None)
    expires_at: Mapped[int | None] = mapped_column(default=None)

    @classmethod
    def unexpired(cls) -> ColumnElement[bool]:
        return or_(cls.expires_at.is_(None), cls.expires_at > now())


class Upload(Base, Owned):
    """A file that arrives in parts; each part's bytes lie in ``<data dir>/parts/<upload>/<part>`` until it ends."""

    __tablename__ = "uploads"

    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    status: Mapped[str] = mapped_column(default="pending")
    expires_at: Mapped[int]
    file_seconds: Mapped[int | None] = mapped_column(default=None)  # how long the file is kept
    file_id: Mapped[str | None] = mapped_column(default=None)


class Part(Base):
    __tablename__ = "parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int]


class Job(Base, Owned):
    """A fine-tuning job and its place in the queue.

    ``config`` is what the worker hands to the job's ``execute``; ``search``, how its models search and sample by
    default, is known once a worker has read it. ``restarts`` counts workers that died; ``heartbeat`` grows while a
    worker lives. ``server`` looks after the job while it runs; ``attempt`` numbers its workers, of which only the
    last may write; ``started_at`` is when that began (Unix time), ``ran`` how long earlier ones ran (seconds; None for
    jobs from before it was counted). ``stage`` is what it does, ``grading`` how long its grader's calls took
    (``grading.so_far``); ``traceparent`` is the request that created the job.
    """

    __tablename__ = "jobs"

    status: Mapped[str] = mapped_column(default="queued", index=True)
    finished_at: Mapped[int | None] = mapped_column(default=None)
    model: Mapped[str]
    training_file: Mapped[str]
    validation_file: Mapped[str | None]
    suffix: Mapped[str | None]
    seed: Mapped[int]
    method: Mapped[JsonObject]
    job_metadata: Mapped[JsonObject | None] = mapped_column("metadata")
    integrations: Mapped[list[Any] | None] = mapped_column(default=None)
    error: Mapped[JsonObject | None] = mapped_column(default=None)
    model_name: Mapped[str]
    config: Mapped[JsonObject]
    search: Mapped[JsonObject | None] = mapped_column(default=None)
    result_files: Mapped[list[str] | None] = mapped_column(default=None)
    trained_tokens: Mapped[int | None] = mapped_column(default=None)
    estimated_finish: Mapped[int | None] = mapped_column(default=None)
    restarts: Mapped[int] = mapped_column(default=0)
    heartbeat: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(default=0, server_default="0")
    server: Mapped[str | None] = mapped_column(default=None)
    started_at: Mapped[float | None] = mapped_column(Double, default=None)
    ran: Mapped[float | None] = mapped_column(Double, default=0.0)
    stage: Mapped[str | None] = mapped_column(default=None)
    grading: Mapped[JsonObject | None] = mapped_column(default=None)
    traceparent: Mapped[str | None] = mapped_column(default=None)


class Event(Base):
    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    type: Mapped[str]
    level: Mapped[str]
    message: Mapped[str]
    data: Mapped[JsonObject]


class Checkpoint(Base):
    """The value functions after one step of a job, callable by ``model_name``. ``path`` is their bundle."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    step: Mapped[int]
    model_name: Mapped[str] = mapped_column(unique=True)
    path: Mapped[str]
    metrics: Mapped[JsonObject]


class Model(Base, Owned):
    """An aligned model, ``id`` its name: the base model steered by the bundle at ``path``."""

    __tablename__ = "models"

    base: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    path: Mapped[str]
    search: Mapped[JsonObject]


class Permission(Base):
    """Another project that may call a model or a checkpoint."""

    __tablename__ = "permissions"
    __table_args__ = (UniqueConstraint("model_name", "project_id"),)

    model_name: Mapped[str]
    project_id: Mapped[str]


class WebhookEndpoint(Base, Owned):
    """Where a project wants to be told of events. ``secret`` signs them and, till ``old_until``, ``old_secret`` too."""

    __tablename__ = "webhook_endpoints"

    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    secret: Mapped[str]
    old_secret: Mapped[str | None] = mapped_column(default=None)
    old_until: Mapped[int | None] = mapped_column(default=None)
    updated_at: Mapped[int] = mapped_column(default=now)


class Delivery(Base):
    """An event on its way to an endpoint, ``id`` its own on the wire; written with what it tells of.

    ``due`` (Unix time) None: it was delivered, or given up after the last attempt.
    """

    __tablename__ = "deliveries"

    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), index=True)
    payload: Mapped[JsonObject]
    attempts: Mapped[int] = mapped_column(default=0)
    due: Mapped[float | None] = mapped_column(Double, index=True)
    last_error: Mapped[str | None] = mapped_column(default=None)


class BackgroundRow(Base, Owned):
    """What a server does in the background (``jobs.background``): it holds the row while ``lease_until`` (Unix time) is
    ahead. ``attempt`` numbers the holders, of which only the last may write; ``tries`` counts those since the last
    progress. ``key_id``: whose allowance its requests count against."""

    __abstract__ = True

    status: Mapped[str] = mapped_column(default="queued", server_default="queued", index=True)
    finished_at: Mapped[int | None] = mapped_column(default=None)
    error: Mapped[JsonObject | None] = mapped_column(default=None)
    key_id: Mapped[str | None] = mapped_column(default=None)
    attempt: Mapped[int] = mapped_column(default=0, server_default="0")
    tries: Mapped[int] = mapped_column(default=0, server_default="0")
    lease_until: Mapped[float | None] = mapped_column(Double, default=None)


class Eval(Base, Owned):
    """What runs are graded by: ``testing_criteria`` are graders in OpenAI's shape, as they were sent."""

    __tablename__ = "evals"

    name: Mapped[str]
    data_source_config: Mapped[JsonObject]
    testing_criteria: Mapped[list[Any]]
    eval_metadata: Mapped[JsonObject | None] = mapped_column("metadata", default=None)


class EvalRun(BackgroundRow, Sized):
    """A run of an eval over its items. ``model`` None: the items bring their samples.

    ``counts``: items by status. ``criteria``: passed, failed, errored and the sum of scores, in the criteria's order.
    ``usage``: tokens and calls by model. All three grow with each batch of items, in its transaction.
    """

    __tablename__ = "eval_runs"
    __table_args__ = (Index("ix_eval_runs_bytes", "project", "bytes"),)

    eval_id: Mapped[str] = mapped_column(ForeignKey("evals.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    model: Mapped[str | None] = mapped_column(default=None)
    data_source: Mapped[JsonObject]
    run_metadata: Mapped[JsonObject | None] = mapped_column("metadata", default=None)
    sampling: Mapped[JsonObject]
    counts: Mapped[JsonObject]
    criteria: Mapped[list[Any]]
    usage: Mapped[JsonObject]


class EvalItem(Base):
    """An item of a run, ``position`` from 0, and what came of it: "pending", then "pass", "fail" or "error"."""

    __tablename__ = "eval_items"
    __table_args__ = (UniqueConstraint("run_id", "position"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("eval_runs.id", ondelete="CASCADE"), index=True)
    position: Mapped[int]
    status: Mapped[str] = mapped_column(default="pending")
    item: Mapped[JsonObject]
    sample: Mapped[JsonObject | None] = mapped_column(default=None)
    results: Mapped[list[Any] | None] = mapped_column(default=None)


class Estimate(BackgroundRow):
    """What a job may gain and cost. ``job_id`` None: it was asked for before a job. ``prompts``: training rows.

    ``config``: what the job's own would be, and ``validation_rows``, of the validation file.
    """

    __tablename__ = "estimates"

    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), default=None)
    model: Mapped[str]
    training_file: Mapped[str]
    rows: Mapped[int]  # of the training file
    config: Mapped[JsonObject]
    prompts: Mapped[list[Any]]
    result: Mapped[JsonObject | None] = mapped_column(default=None)


class Batch(BackgroundRow):
    """Many requests of one route. ``total``: requests; ``completed`` and ``failed``: those with an answer so far.

    ``segments``: for each holder its attempt and the bytes of its files that count (``jobs.batches.output``).
    ``output_seconds``: how long the files with the answers are kept. All that grows does so with each group of answers.
    """

    __tablename__ = "batches"

    endpoint: Mapped[str]
    input_file_id: Mapped[str]
    completion_window: Mapped[str]
    batch_metadata: Mapped[JsonObject | None] = mapped_column("metadata", default=None)
    output_seconds: Mapped[int | None] = mapped_column(default=None)
    expires_at: Mapped[int]
    in_progress_at: Mapped[int | None] = mapped_column(default=None)
    finalizing_at: Mapped[int | None] = mapped_column(default=None)
    cancelling_at: Mapped[int | None] = mapped_column(default=None)
    model: Mapped[str | None] = mapped_column(default=None)
    total: Mapped[int] = mapped_column(default=0, server_default="0")
    completed: Mapped[int] = mapped_column(default=0, server_default="0")
    failed: Mapped[int] = mapped_column(default=0, server_default="0")
    segments: Mapped[list[Any]] = mapped_column(default=list)
    usage: Mapped[JsonObject] = mapped_column(default=dict)
    output_file_id: Mapped[str | None] = mapped_column(default=None)
    error_file_id: Mapped[str | None] = mapped_column(default=None)


class Completion(Base, Owned, Sized):
    """A stored chat completion. ``messages``: those of its request; ``tags``: the metadata's pairs, to be searched."""

    __tablename__ = "completions"
    __table_args__ = (Index("ix_completions_bytes", "project", "expires_at", "bytes"),)

    model: Mapped[str]
    messages: Mapped[list[Any]]
    body: Mapped[JsonObject]
    completion_metadata: Mapped[JsonObject] = mapped_column("metadata")
    tags: Mapped[str]
    expires_at: Mapped[int] = mapped_column(index=True)

    @classmethod
    def unexpired(cls) -> ColumnElement[bool]:
        return cls.expires_at > now()


class JobRun(BackgroundRow):
    """A run of a batch job. ``kind``: its entry point's name; ``config``: all of it, defaults too."""

    __tablename__ = "job_runs"

    kind: Mapped[str]
    name: Mapped[str | None] = mapped_column(default=None)
    preset: Mapped[str | None] = mapped_column(default=None)
    config: Mapped[JsonObject]


class Response(Base, Owned, Sized):
    """A stored response. ``input``: its own items; ``previous_id``: the response that it continues."""

    __tablename__ = "responses"
    __table_args__ = (Index("ix_responses_bytes", "project", "expires_at", "bytes"),)

    previous_id: Mapped[str | None] = mapped_column(default=None)
    input: Mapped[list[Any]]
    body: Mapped[JsonObject]
    expires_at: Mapped[int] = mapped_column(index=True)

    @classmethod
    def unexpired(cls) -> ColumnElement[bool]:
        return cls.expires_at > now()
