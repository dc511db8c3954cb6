"""/v1/fine_tuning/jobs/{id}/events: a list of a job's events, or a stream that follows them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from iro_server import JsonObject
from iro_server.access.rates import RateLimitExceeded
from iro_server.api.context import Context, Ctx, Limit, list_object
from iro_server.api.errors import DATABASE_AWAY, APIError
from iro_server.api.respond import COMMENT_SECONDS, UNBUFFERED
from iro_server.concurrency.deadlines import DeadlineExceeded, ServerStopping
from iro_server.store import tables as t

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine tuning"])
POLL_SECONDS = 0.5
READ = 100  # events at once
MAX_STREAMS = 64  # of a project on this server
streams: Counter[str] = Counter()  # that are open, by project


@router.get("/{id}/events", response_model=None)
async def events(
    id: str, request: Request, context: Ctx, limit: Limit = 20, after: str | None = None, stream: bool = False
) -> JsonObject | StreamingResponse:
    """The job's events, newest first; ``after``: those older than this one. ``stream``: server-sent events instead,
    oldest first, until the job has ended; ``after``: those newer than this one."""
    await run_in_threadpool(context.get, t.Job, "fine-tuning job", id)
    if not stream:
        return await run_in_threadpool(_list, id, context, limit, after)
    if after is not None:
        await run_in_threadpool(context.get, t.Event, "event", after, "after", t.Event.job_id == id)
    if streams[context.caller.project] >= MAX_STREAMS:
        message = (
            f"This project follows {MAX_STREAMS} jobs on this server, the most it may. List events without 'stream'."
        )
        raise RateLimitExceeded(message, "concurrency", 60)
    request.state.counted.close()  # it waits most of the time: it is none of the key's requests at once
    return StreamingResponse(_follow(id, after, context), headers=UNBUFFERED, media_type="text/event-stream")


def _list(id: str, context: Context, limit: int, after: str | None, ascending: bool = False) -> JsonObject:
    return list_object(context, t.Event, _show, t.Event.job_id == id, limit=limit, after=after, ascending=ascending)


async def _follow(id: str, after: str | None, context: Context) -> AsyncGenerator[str]:
    """Events as they come, a comment where none does, and ``[DONE]`` once the job has ended. A stream without
    ``[DONE]`` was cut by the server's request timeout, its end or its database, and can go on after its last event."""
    loop = asyncio.get_running_loop()
    deadline, spoke = loop.time() + context.settings.request_timeout, loop.time()
    ended = False
    with _counted(context.caller.project):
        while not ended:
            try:
                async with context.deadlines.until(deadline):
                    rows, ended = await _next(id, after, context)
            except (APIError, DeadlineExceeded, ServerStopping, *DATABASE_AWAY):
                return
            for row in rows:
                yield f"id: {row['id']}\ndata: {json.dumps(row)}\n\n"
                after = row["id"]
            if rows or loop.time() - spoke >= COMMENT_SECONDS:
                spoke = loop.time()
                if not rows:
                    yield ": waiting\n\n"
    yield "data: [DONE]\n\n"


async def _next(id: str, after: str | None, context: Context) -> tuple[list[JsonObject], bool]:
    """The events after one, or none after a while; and whether they are the last."""
    rows, ended = await run_in_threadpool(_read, id, after, context)
    if not rows and not ended:
        await asyncio.sleep(POLL_SECONDS)
    return rows, ended


@contextmanager
def _counted(project: str) -> Iterator[None]:
    streams[project] += 1
    try:
        yield
    finally:
        streams[project] -= 1


def _read(id: str, after: str | None, context: Context) -> tuple[list[JsonObject], bool]:
    job = context.get(t.Job, "fine-tuning job", id)  # first: events that come after it has ended are not waited for
    page = _list(id, context, READ, after, ascending=True)
    return page["data"], job.status in t.FINISHED and not page["has_more"]


def _show(event: t.Event) -> JsonObject:
    fields = ("id", "created_at", "level", "message", "type", "data")
    return {"object": "fine_tuning.job.event"} | {name: getattr(event, name) for name in fields}
