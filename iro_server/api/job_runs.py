"""/v1/iro/job_kinds and /v1/iro/job_runs: the registered batch jobs, and runs of them for whoever runs the machine."""

from __future__ import annotations

import shutil
from typing import Annotated

from fastapi import APIRouter, Query, Response
from jsonschema import Draft202012Validator
from pydantic import Field
from sqlalchemy import delete, update

from iro_server import JsonObject
from iro_server.access.scopes import Scope
from iro_server.api import files
from iro_server.api.closed_model import ClosedModel
from iro_server.api.context import Context, Ctx, Limit
from iro_server.api.errors import APIError, bad_request, not_found
from iro_server.api.file_links import link_file
from iro_server.api.listing import list_response
from iro_server.api.quotas import check_job_runs
from iro_server.api.stored_size import check_finite
from iro_server.jobs import lock
from iro_server.jobs.job_runs.folder import RunFolder
from iro_server.jobs.job_runs.kinds import JobKind, job_kinds, path_fields
from iro_server.settings import is_loopback
from iro_server.store import tables as t

router = APIRouter(prefix="/iro", tags=["batch jobs"])
SHOWN = ("id", "created_at", "finished_at", "status", "kind", "name", "preset")
UNFINISHED = ("queued", "in_progress")


class JobRunRequest(ClosedModel):
    """``config``: fields that differ from the preset, or from the batch job's defaults. One that names a path takes the
    id of a stored file."""

    kind: str
    preset: str | None = None
    config: dict[str, object] = Field(default_factory=dict)
    name: Annotated[str, Field(max_length=100)] | None = None


@router.get("/job_kinds")
def list_kinds() -> JsonObject:
    """The registered batch jobs with their presets and the JSON schemas of their configs."""
    kinds = job_kinds().values()
    return {"object": "list", "data": [{"object": "iro.job_kind"} | kind for kind in kinds], "has_more": False}


@router.post("/job_runs")
def create(body: JobRunRequest, context: Ctx) -> JsonObject:
    """Queue a run of a batch job. Takes a key with the scope ``admin``."""
    _check_operator(context)
    check_job_runs(context)
    kind = _kind(body.kind)
    if body.preset is not None and body.preset not in kind["presets"]:
        presets = ", ".join(kind["presets"]) or "none"
        raise bad_request(f"{body.kind} has no preset '{body.preset}'. It has: {presets}.", "preset")
    preset = kind["presets"][body.preset] if body.preset else {}
    config = _defaults(kind) | preset | body.config
    _check_config(kind["config_schema"], config)
    for name, value in body.config.items():
        check_finite(value, f"config.{name}")
    run = t.JobRun(
        id=t.new_id("jobrun_"),
        project=context.caller.project,
        key_id=context.caller.key_id,
        kind=body.kind,
        name=body.name,
        preset=body.preset,
        config=config,
        status="queued",
    )
    folder = _folder(context, run)
    for id, param in _named_files(context, kind["config_schema"], preset, body.config).items():
        link_file(context, id, param, folder.path, f"{folder.files.name}/{id}")
    with context.sessions.begin() as session:
        session.add(run)
    return _show(context, context.get(t.JobRun, "run", run.id))


@router.get("/job_runs")
def list_runs(context: Ctx, limit: Limit = 20, after: str | None = None) -> Response:
    return list_response(context, t.JobRun, lambda run: _show(context, run), limit=limit, after=after)


@router.get("/job_runs/{id}")
def retrieve(id: str, context: Ctx) -> JsonObject:
    return _show(context, _run(context, id))


@router.post("/job_runs/{id}/cancel")
def cancel(id: str, context: Ctx) -> JsonObject:
    """End a run after its current step. Its metrics and figures stay. Takes a key with the scope ``admin``."""
    _check_operator(context)
    _run(context, id)
    unfinished = (t.JobRun.id == id, t.JobRun.status.in_(UNFINISHED))
    change = update(t.JobRun).where(*unfinished).values(status="cancelled", finished_at=t.now())
    with context.sessions.begin() as session:
        if session.execute(change.returning(t.JobRun.id)).first() is None:
            raise bad_request(f"{id} has ended already.", "id", "run_ended")
    return _show(context, _run(context, id))


@router.delete("/job_runs/{id}")
def remove(id: str, context: Ctx) -> JsonObject:
    """Delete a run that has ended, with its metrics, result and figures. Takes a key with the scope ``admin``."""
    _check_operator(context)
    run = _run(context, id)
    folder = context.settings.run_dir(run.id)
    if run.status in UNFINISHED or lock.held(folder):
        raise bad_request(
            f"{id} has not ended: cancel it, and delete it once its process has stopped.", "id", "run_open"
        )
    ended = delete(t.JobRun).where(t.JobRun.id == id, t.JobRun.status.not_in(UNFINISHED))
    with context.sessions.begin() as session:
        session.execute(ended)
    shutil.rmtree(folder, ignore_errors=True)  # what stays of it, the sweeper removes
    return {"id": id, "object": "iro.job_run.deleted", "deleted": True}


@router.get("/job_runs/{id}/metrics")
def metrics(
    id: str,
    context: Ctx,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
) -> JsonObject:
    """Rows of the run's metrics.jsonl, as far as it is. A run that is resumed writes its last rows again."""
    rows = _folder(context, _run(context, id)).metrics(offset, limit + 1)
    return {"object": "list", "data": rows[:limit], "has_more": len(rows) > limit}


@router.get("/job_runs/{id}/result", response_class=Response)
def result(id: str, context: Ctx) -> Response:
    """The run's result.json: config, versions, checks, and what the job returned."""
    content = _folder(context, _run(context, id)).result()
    if content is None:
        raise APIError(404, f"{id} has no result yet.", param="id", code="result_not_found")
    return Response(content, media_type="application/json")


@router.get("/job_runs/{id}/figures/{name}", response_class=Response)
def figure(id: str, name: str, context: Ctx) -> Response:
    """A figure as PNG, by a name of the run's ``figures``."""
    content = _folder(context, _run(context, id)).figure(name)
    if content is None:
        raise not_found("figure", name, "name")
    return Response(content, media_type="image/png")


def _check_operator(context: Context) -> None:
    """403 unless the caller runs the machine: a key that was given the scope admin, or, on loopback, no key at all.

    A key without scopes may do all that a project may, which runs of batch jobs are not.
    """
    caller = context.caller
    if caller.key_id is None:
        may = is_loopback(context.settings.host)
    else:
        may = caller.scopes is not None and Scope.admin in caller.scopes
    if not may:
        command = f"iro keys create NAME --project {context.caller.project} --scope read --scope admin"
        message = f"Runs of batch jobs need a key that was given the scope 'admin': `{command}`."
        raise APIError(403, message, code="insufficient_scope")


def _kind(name: str) -> JobKind:
    kinds = job_kinds()
    if name not in kinds:
        raise bad_request(f"No batch job '{name}'. There are: {', '.join(kinds)}.", "kind")
    if problem := kinds[name]["problem"]:
        raise bad_request(f"{problem}.", "kind", "job_unavailable")
    return kinds[name]


def _defaults(kind: JobKind) -> JsonObject:
    """Stored with the run: it goes on with them where a later version has others."""
    fields = kind["config_schema"]["properties"]
    return {name: field["default"] for name, field in fields.items() if "default" in field}


def _check_config(schema: JsonObject, config: JsonObject) -> None:
    """400 with the first field that the schema refuses. What it cannot say, the run itself checks."""
    if unknown := config.keys() - schema["properties"].keys():
        field = min(unknown)
        raise bad_request(f"Unrecognized field of the config: {field}", f"config.{field}", "unknown_parameter")
    for error in sorted(Draft202012Validator(schema).iter_errors(config), key=lambda error: list(map(str, error.path))):
        param = ".".join(["config", *map(str, error.path)])
        raise bad_request(f"Invalid '{param}': {error.message[:500]}", param)


def _named_files(context: Context, schema: JsonObject, preset: JsonObject, sent: JsonObject) -> dict[str, str]:
    """Ids of the caller's files that fields for paths name, each with such a field. 400 for other paths than the
    preset's and the default."""
    params = {}
    for name in path_fields(schema) & sent.keys():
        value = sent[name]
        if value is None or value in (preset.get(name), schema["properties"][name].get("default")):
            continue
        if not isinstance(value, str) or not value.startswith("file-"):
            message = f"Invalid 'config.{name}': a path on the server cannot be chosen; upload a file and send its id."
            raise bad_request(message, f"config.{name}", "path_not_allowed")
        file = files.unexpired_file(context, value, f"config.{name}")
        files.opened(context, file).close()
        params[file.id] = f"config.{name}"
    return params


def _run(context: Context, id: str) -> t.JobRun:
    return context.get(t.JobRun, "run", id)


def _folder(context: Context, run: t.JobRun) -> RunFolder:
    return RunFolder(context.settings.run_dir(run.id))


def _show(context: Context, run: t.JobRun) -> JsonObject:
    folder = _folder(context, run)
    status = folder.status()
    return {
        "object": "iro.job_run",
        **{name: getattr(run, name) for name in SHOWN},
        "attempts": run.attempt,
        "config": run.config,
        "error": run.error,
        "progress": status.get("progress"),
        "message": status.get("message"),
        "metrics_bytes": folder.metrics_bytes,
        "figures": folder.figures(),
    }
