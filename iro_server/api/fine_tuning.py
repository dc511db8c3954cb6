"""/v1/fine_tuning/jobs: alignment jobs, by the method ``reinforcement``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import ColumnElement, column, exists
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from starlette.datastructures import QueryParams

from iro_server import JsonObject
from iro_server.api import files
from iro_server.api.context import Context, Ctx, Limit, list_object
from iro_server.api.errors import APIError, bad_request
from iro_server.api.file_links import link_file
from iro_server.api.graders import check_grader_of_job
from iro_server.api.job_request import JobRequest
from iro_server.api.listing import list_response
from iro_server.api.quotas import check_jobs
from iro_server.api.stored_size import check_stored_size
from iro_server.jobs import leftovers, records
from iro_server.store import tables as t
from iro_server.telemetry import tracing

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine tuning"])


class Pairs(FunctionElement[Any]):
    """The keys of a JSON object and their values, a row each."""

    inherit_cache = True


@compiles(Pairs, "sqlite")
@compiles(Pairs, "postgresql")
def _compiled(pairs: Pairs, compiler: SQLCompiler, **options: Any) -> str:
    function = {"sqlite": "json_each", "postgresql": "json_each_text"}[compiler.dialect.name]
    return f"{function}({compiler.process(pairs.clauses, **options)})"


@router.post("")
async def create(body: JobRequest, context: Ctx) -> JsonObject:
    """Queue a job. All of it is checked first: what can be known to fail is refused here."""
    return await run_in_threadpool(_create, body, context)


def _create(body: JobRequest, context: Context) -> JsonObject:
    check_jobs(context)
    sources = check_request(body, context)
    job_id = t.new_id("ftjob-")
    folder = context.settings.job_dir(job_id)
    config = {"model_dir": str(context.settings.model_dir), "model_name": body.model, **context.settings.engine_fields}
    for param, id in sources.items():
        if id is not None:  # the job's own name for it: the file may be deleted while the job runs
            link_file(context, id, param, folder, f"{param}.jsonl")
            config[param] = str(folder / f"{param}.jsonl")
    seed = job_seed(body)
    job = t.Job(
        id=job_id,
        project=context.caller.project,
        model=body.model,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix,
        seed=seed,
        method=body.method.model_dump(exclude_none=True),
        job_metadata=body.metadata,
        integrations=[each.model_dump(exclude_none=True) for each in body.integrations or []],
        status="validating_files",
        traceparent=tracing.here(),
        model_name=f"ft:{body.model}:{context.settings.organization}:{body.suffix or ''}:{job_id[-8:]}",
        config=config
        | {"grader": body.method.reinforcement.grader, "seed": seed}
        | body.method.reinforcement.options(),
    )
    with context.sessions.begin() as session:
        session.add(job)
        session.flush()
        records.add_event(session, job_id, f"Created fine-tuning job: {job_id}")
        for param, id in sources.items():
            if id is not None:
                records.add_event(session, job_id, f"Validating {param.replace('_', ' ')}: {id}")
        if body.integrations:
            message = "wandb: nothing is sent there; the job's TensorBoard files are in its run folder"
            records.add_event(session, job_id, message, "warn")
    return show(job, context)


def check_request(body: JobRequest, context: Context) -> dict[str, str | None]:
    """The request's files by parameter. 400 or 404 for what can be known to fail."""
    _check_model(body, context)
    _check_sizes(body, context.settings.max_definition_bytes)
    body.method.reinforcement.check_rows(context.settings.max_rows)
    body.method.reinforcement.check_format()
    _check_grader(body, context)
    sources = {"training_file": body.training_file, "validation_file": body.validation_file}
    for param, id in sources.items():
        if id is not None:
            _check_purpose(files.unexpired_file(context, id, param), param)
    return sources


def _check_sizes(body: JobRequest, limit: int) -> None:
    reinforcement = body.method.reinforcement
    check_stored_size(reinforcement.grader, "method.reinforcement.grader", limit)
    check_stored_size(reinforcement.response_format, "method.reinforcement.response_format", limit)
    check_stored_size(body.method.model_dump(exclude_none=True), "method", limit)
    check_stored_size([each.model_dump(exclude_none=True) for each in body.integrations or []], "integrations", limit)


def _check_purpose(file: t.File, param: str) -> None:
    if file.purpose != "fine-tune":
        message = f"The purpose of {file.id} is '{file.purpose}'; upload the rows again with purpose='fine-tune'."
        raise bad_request(message, param, "invalid_file_purpose")


def job_seed(body: JobRequest) -> int:
    return secrets.randbelow(2**31) if body.seed is None else body.seed


def _check_model(body: JobRequest, context: Context) -> None:
    if body.model != context.models.base:
        context.model(body.model)
        raise bad_request(f"'{body.model}' is aligned already; align {context.models.base}.", "model", "invalid_model")


def _check_grader(body: JobRequest, context: Context) -> None:
    try:
        check_grader_of_job(body.method.reinforcement.grader, context)
    except APIError as error:
        error.param = f"method.reinforcement.{error.param}"
        raise


@router.get("")
def list_jobs(request: Request, context: Ctx, limit: Limit = 20, after: str | None = None) -> Response:
    """The jobs, newest first. ``metadata[key]=value``: those that carry it; ``metadata=null``: those without any."""
    filters = _metadata_filter(request.query_params)
    ahead = _jobs_ahead(context)
    return list_response(
        context, t.Job, lambda job: show(job, context, ahead), filters=filters, limit=limit, after=after
    )


def _metadata_filter(query: QueryParams) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    for name, value in query.multi_items():
        if name == "metadata":
            if value != "null":
                raise bad_request("Filter by metadata[key]=value, or metadata=null.", "metadata")
            where.append(t.Job.job_metadata.is_(None))
        elif name.startswith("metadata[") and name.endswith("]"):
            where.append(_carries(name[len("metadata[") : -1], value))
    return where


def _carries(key: str, value: str) -> ColumnElement[bool]:
    """Whether a job's metadata has the pair: SQLite's JSON paths cannot spell every key."""
    pairs = Pairs(t.Job.job_metadata).table_valued(column("key", t.Text), column("value", t.Text))
    return exists().where(pairs.c.key == key, pairs.c.value == value)


@router.get("/{id}")
def retrieve(id: str, context: Ctx) -> JsonObject:
    return show(_job(context, id), context)


@router.post("/{id}/cancel")
def cancel(id: str, context: Ctx) -> JsonObject:
    """Cancel a job that has not ended. Its worker stops at its next step, or is killed soon after."""
    job = _job(context, id)
    with context.sessions.begin() as session:
        if not any(records.move(session, id, before, "cancelled") for before in records.OPEN):
            raise bad_request(f"{id} has ended: its status is {job.status}.", "id", "job_ended")
        records.add_event(session, id, "The job was cancelled")
    leftovers.discard_deleted_inputs(context.settings, context.sessions, t.Job.id == id)
    return show(_job(context, id), context)


@router.post("/{id}/pause")
def pause(id: str, context: Ctx) -> JsonObject:
    """Pause a job. What it has done is kept: its checkpoints can be called, and resume goes on from there."""
    job = _job(context, id)
    if not records.pause(context.sessions, id, "The job was paused"):
        raise bad_request(
            f"{id} is {job.status}; only a job that waits or runs can be paused.", "id", "job_not_running"
        )
    return show(_job(context, id), context)


@router.post("/{id}/resume")
def resume(id: str, context: Ctx) -> JsonObject:
    """Queue a paused job again; it goes on from its last finished step."""
    job = _job(context, id)
    before_it_ran = job.attempt == 0  # perhaps before its files were looked at
    with context.sessions.begin() as session:
        if not records.move(session, id, "paused", "validating_files" if before_it_ran else "queued"):
            raise bad_request(f"{id} is {job.status}, not paused.", "id", "job_not_paused")
        records.add_event(session, id, "The job was resumed")
    return show(_job(context, id), context)


@router.get("/{id}/checkpoints")
def checkpoints(id: str, context: Ctx, limit: Limit = 10, after: str | None = None) -> JsonObject:
    """The job's checkpoints, newest first. Each can be called by its model name."""
    _job(context, id)
    return list_object(context, t.Checkpoint, _show_checkpoint, t.Checkpoint.job_id == id, limit=limit, after=after)


def _job(context: Context, id: str) -> t.Job:
    return context.get(t.Job, "fine-tuning job", id)


def show(job: t.Job, context: Context, jobs_ahead: Mapping[str, int] | None = None) -> JsonObject:
    """``jobs_ahead``: as read for a whole list; otherwise it is read where the job is queued."""
    if jobs_ahead is None:
        jobs_ahead = _jobs_ahead(context) if job.status == "queued" else {}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created_at,
        "finished_at": job.finished_at,
        "status": job.status,
        "model": job.model,
        "fine_tuned_model": job.model_name if job.status == "succeeded" else None,
        "organization_id": context.settings.organization,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "result_files": job.result_files or [],
        "hyperparameters": {},
        "method": job.method,
        "seed": job.seed,
        "error": job.error,
        "metadata": job.job_metadata,
        "trained_tokens": job.trained_tokens,
        "estimated_finish": job.estimated_finish,
        "integrations": job.integrations or [],
        "iro": {name: (job.search or {}).get(name) for name in ("improved", "over_optimization")}
        | {"suffix": job.suffix, "ran_seconds": _ran_seconds(job)}
        | {"jobs_ahead": jobs_ahead.get(job.id) if job.status == "queued" else None},
    }


def _jobs_ahead(context: Context) -> dict[str, int]:
    with context.sessions() as session:
        return records.jobs_ahead(session, context.caller.project)


def _ran_seconds(job: t.Job) -> float | None:
    """How long the job has run, without waiting in the queue and pauses. None for jobs of earlier versions."""
    if job.ran is None or job.status != "running" or job.started_at is None:
        return job.ran
    return job.ran + time.time() - job.started_at


def _show_checkpoint(checkpoint: t.Checkpoint) -> JsonObject:
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": checkpoint.model_name,
        "fine_tuning_job_id": checkpoint.job_id,
        "metrics": {"step": checkpoint.step} | checkpoint.metrics,
        "step_number": checkpoint.step,
    }
