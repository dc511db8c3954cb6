"""A generation request's turn: its tokens counted, its place in the queue, its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request

from iro_server.api.admission import Ticket
from iro_server.api.context import Context
from iro_server.api.errors import ClientGone
from iro_server.api.generation import Generation
from iro_server.telemetry import metrics, tracing

Result = TypeVar("Result")


@dataclass(frozen=True)
class Turn:
    """``deadline`` in the event loop's seconds. ``end`` it however the request ends."""

    ticket: Ticket
    context: Context
    deadline: float

    async def within(self, work: Awaitable[Result]) -> Result:
        """``work``'s result; 504 past the deadline, 503 where the server stops before."""
        return await self.context.deadlines.by(self.deadline, work)

    async def admitted(self) -> None:
        """Wait until the request may generate."""
        with tracing.span("queue"), metrics.timed(metrics.QUEUE_SECONDS):
            await self.ticket.admitted.wait()

    async def grade(self, call: Callable[..., Result], *args: object) -> Result:
        """The result of a call that grades, among those of the caller's project. 503 where too many of them wait."""
        return await self.context.grading.run(self.context.caller.project, call, *args)

    def end(self) -> None:
        """Free the request's rows, or its place in the queue."""
        self.ticket.release()


def take_turn(request: Request, context: Context, generations: list[Generation]) -> Turn:
    """A place in the queue of those that generate. 400 where their tokens never fit in memory, 429 where the key has no
    tokens left, 503 where too many wait."""
    cache_tokens = sum(each.cache_tokens for each in generations)
    context.admission.check(cache_tokens)
    if allowance := getattr(request.state, "allowance", None):
        tokens = sum(each.base_tokens + len(each.prompt_ids) for each in generations)
        request.state.rates.spend(allowance, tokens, request.state.headers)
    deadline = asyncio.get_running_loop().time() + context.settings.request_timeout
    rows = sum(each.rows for each in generations)
    return Turn(context.admission.queue(context.caller.project, rows, cache_tokens), context, deadline)


async def unless_gone(request: Request, work: Coroutine[object, None, Result]) -> Result:
    """``work``'s result; cancels it and raises ClientGone once the client has disconnected."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
