"""A generation request's slot: its tokens counted, its place in the queue, its deadline."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import Request

from iro_server.api.context import Context
from iro_server.api.generation import Generation
from iro_server.concurrency.admission import Ticket
from iro_server.telemetry import metrics, tracing


@dataclass(frozen=True)
class GenerationSlot:
    """``deadline`` in the event loop's seconds. ``release`` its ticket however the request ends."""

    ticket: Ticket
    context: Context
    deadline: float

    async def admitted(self) -> None:
        """Wait until the request may generate."""
        with tracing.span("queue"), metrics.timed(metrics.QUEUE_SECONDS):
            await self.ticket.admitted.wait()


def take_slot(request: Request, context: Context, generations: list[Generation]) -> GenerationSlot:
    """A place in the queue of those that generate.

    Raises RequestTooLarge where their tokens never fit in memory, RateLimitExceeded where the key has no tokens left,
    TooManyWaiting where too many wait.
    """
    cache_tokens, rows = sum(each.cache_tokens for each in generations), sum(each.rows for each in generations)
    ticket = context.admission.queue(context.caller.project, rows, cache_tokens)
    if allowance := getattr(request.state, "allowance", None):
        tokens = sum(each.base_tokens + len(each.prompt_ids) for each in generations)
        try:
            request.state.rates.spend(allowance, tokens, request.state.headers)
        except BaseException:
            ticket.release()
            raise
    deadline = asyncio.get_running_loop().time() + context.settings.request_timeout
    return GenerationSlot(ticket, context, deadline)
