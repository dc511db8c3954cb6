"""/v1/batches: a file of requests, answered in the background."""

from __future__ import annotations

import shutil
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import func, update

from iro_server import JsonObject
from iro_server.api import files
from iro_server.api.closed_model import ClosedModel
from iro_server.api.context import Context, Ctx
from iro_server.api.errors import bad_request
from iro_server.api.eval_requests import Tags
from iro_server.api.file_links import link_file
from iro_server.api.jsonl import BatchEndpoint
from iro_server.api.listing import list_response
from iro_server.api.quotas import check_batches
from iro_server.jobs.batches.running import NO_USAGE
from iro_server.store import tables as t
from iro_server.store.usage import BATCH_INPUT

router = APIRouter(prefix="/batches", tags=["batches"])
WINDOWS = {"24h": 24 * 3600}  # seconds
TIMES = {"completed": "completed_at", "failed": "failed_at", "expired": "expired_at", "cancelled": "cancelled_at"}
SHOWN: tuple[str, ...] = (
    "id",
    "endpoint",
    "input_file_id",
    "completion_window",
    "output_file_id",
    "error_file_id",
    "model",
)
SHOWN += ("created_at", "in_progress_at", "expires_at", "finalizing_at", "cancelling_at")


class BatchRequest(ClosedModel):
    """``output_expires_after``: how long the files with the answers are kept."""

    input_file_id: str
    endpoint: BatchEndpoint
    completion_window: Literal["24h"]
    metadata: Tags | None = None
    output_expires_after: files.ExpiresAfter | None = None


@router.post("")
async def create(body: BatchRequest, context: Ctx) -> JsonObject:
    """Queue a batch. It keeps its requests: the file may be deleted."""
    return await run_in_threadpool(_create, body, context)


def _create(body: BatchRequest, context: Context) -> JsonObject:
    check_batches(context)
    file = files.unexpired_file(context, body.input_file_id, "input_file_id")
    if file.purpose != "batch":
        message = f"{file.id} has the purpose '{file.purpose}'; upload the requests with the purpose 'batch'."
        raise bad_request(f"Invalid 'input_file_id': {message}", "input_file_id", "invalid_purpose")
    files.opened(context, file).close()
    created = t.now()
    batch = t.Batch(
        id=t.new_id("batch_"),
        created_at=created,
        project=context.caller.project,
        key_id=context.caller.key_id,
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        batch_metadata=body.metadata,
        output_seconds=body.output_expires_after and body.output_expires_after.seconds,
        expires_at=created + WINDOWS[body.completion_window],
    )
    link_file(context, file.id, "input_file_id", context.settings.batch_dir(batch.id), BATCH_INPUT)
    with context.sessions.begin() as session:
        session.add(batch)
    return show(batch)


@router.get("")
def list_batches(context: Ctx, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None) -> Response:
    return list_response(context, t.Batch, show, limit=limit, after=after)


@router.get("/{id}")
def retrieve(id: str, context: Ctx) -> JsonObject:
    return show(context.get(t.Batch, "batch", id))


@router.post("/{id}/cancel")
async def cancel(id: str, context: Ctx) -> JsonObject:
    """Cancel a batch that has not ended. The answers so far are in its output file once it is cancelled."""
    return await run_in_threadpool(_cancel, id, context)


def _cancel(id: str, context: Context) -> JsonObject:
    context.get(t.Batch, "batch", id)
    waiting = (t.Batch.id == id, t.Batch.status == "queued", t.Batch.in_progress_at.is_(None))
    under_way = (t.Batch.id == id, t.Batch.status.in_(("queued", "in_progress")))
    now = t.now()
    with context.sessions.begin() as session:
        unasked = update(t.Batch).where(*waiting).values(status="cancelled", cancelling_at=now, finished_at=now)
        never_began = session.execute(unasked.returning(t.Batch.id)).first() is not None
        if not never_began:
            asked = func.coalesce(t.Batch.cancelling_at, now)  # the first time counts
            change = update(t.Batch).where(*under_way).values(cancelling_at=asked).returning(t.Batch.id)
            if session.execute(change).first() is None:
                raise bad_request(f"{id} has ended already.", "id", "batch_ended")
    if never_began:
        shutil.rmtree(context.settings.batch_dir(id), ignore_errors=True)
    return show(context.get(t.Batch, "batch", id))


def show(batch: t.Batch) -> JsonObject:
    usage = NO_USAGE | (batch.usage or {})
    ends = {name: batch.finished_at if status == batch.status else None for status, name in TIMES.items()}
    return {
        "object": "batch",
        **{name: getattr(batch, name) for name in SHOWN},
        **ends,
        "status": _status(batch),
        "errors": batch.error and {"object": "list", "data": [{"line": None, "param": None} | batch.error]},
        "request_counts": {name: getattr(batch, name) or 0 for name in ("total", "completed", "failed")},
        "metadata": batch.batch_metadata,
        "usage": {
            **{name: usage[name] for name in ("input_tokens", "output_tokens", "total_tokens")},
            "input_tokens_details": {"cached_tokens": usage["cached_tokens"]},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


def _status(batch: t.Batch) -> str:
    """OpenAI's."""
    if batch.status not in ("queued", "in_progress"):
        return batch.status
    if batch.cancelling_at is not None:
        return "cancelling"
    if batch.in_progress_at is None:
        return "validating"
    return "in_progress" if batch.finalizing_at is None else "finalizing"
