"""A generation request's turn: its tokens counted, its place in the queue, its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from iro_server.api.admission import Ticket
from iro_server.api.context import Context
from iro_server.api.deadlines import Deadlines
from iro_server.api.errors import ClientGone
from iro_server.api.generation import Generation
from iro_server.telemetry import metrics, tracing

Result = TypeVar("Result")


@dataclass(frozen=True)
class Turn:
    """``deadline`` in the event loop's seconds. ``end`` it however the request ends."""

    ticket: Ticket
    deadlines: Deadlines
    deadline: float

    async def within(self, work: Awaitable[Result]) -> Result:
        """``work``'s result; 504 past the deadline, 503 where the server stops before."""
        return await self.deadlines.by(self.deadline, work)

    def end(self) -> None:
        self.ticket.release()


async def take_turn(request: Request, context: Context, generations: list[Generation]) -> Turn:
    """Wait until these may generate. 400 where their tokens never fit in memory, 429 where the key has no tokens left,
    503 where too many wait, 504 where the wait is too long."""
    cache_tokens = sum(each.cache_tokens for each in generations)
    context.admission.check(cache_tokens)
    if allowance := getattr(request.state, "allowance", None):
        tokens = sum(each.base_tokens + len(each.prompt_ids) for each in generations)
        request.state.rates.spend(allowance, tokens, request.state.headers)
    deadline = asyncio.get_running_loop().time() + context.settings.request_timeout
    entering = unless_gone(request, context.admission.enter(sum(each.rows for each in generations), cache_tokens))
    with tracing.span("queue"), metrics.timed(metrics.QUEUE_SECONDS):
        ticket = await context.deadlines.by(deadline, entering)
    return Turn(ticket, context.deadlines, deadline)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
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
