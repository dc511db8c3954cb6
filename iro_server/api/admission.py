"""Which requests generate now, first come first served: those whose rows and cached tokens fit; the others wait."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from iro_server.api.errors import APIError, bad_request


@dataclass(eq=False)
class Ticket:
    """A place in the queue and, once ``admitted``, among the requests that generate. ``release`` it, once or more,
    however the request ends."""

    admission: Admission
    rows: int
    cache_tokens: int = 0
    admitted: asyncio.Event = field(default_factory=asyncio.Event)
    held: bool = True

    def release(self) -> None:
        if self.held:
            self.held = False
            self.admission.free(self)


@dataclass
class Admission:
    """``max_rows`` of all requests together, and ``max_cache_tokens`` tokens whose keys and values they hold (None: any
    number); ``max_waiting`` requests in the queue. A request of more rows than all runs alone."""

    max_rows: int
    max_waiting: int
    max_cache_tokens: int | None = None
    active: int = 0
    active_cache_tokens: int = 0
    waiting: deque[Ticket] = field(default_factory=deque)

    def check(self, cache_tokens: int) -> None:
        """400 where so many cached tokens never fit."""
        if self.max_cache_tokens is not None and cache_tokens > self.max_cache_tokens:
            message = (
                f"This request may hold {cache_tokens} tokens in the model's cache, over {self.max_cache_tokens}: its "
                "prompt, and max_tokens for each of its rows. Reduce the prompt, max_tokens, n or the search's rows."
            )
            raise bad_request(message, "max_tokens", "too_many_tokens")

    def queue(self, rows: int, cache_tokens: int = 0) -> Ticket:
        """A ticket, admitted at once or later. 400 where it never fits, 503 where too many wait already."""
        self.check(cache_tokens)
        ticket = Ticket(self, min(rows, self.max_rows), cache_tokens)
        if self.waiting or not self._fits(ticket):
            self._check_queue()
            self.waiting.append(ticket)
        else:
            self._take(ticket)
        return ticket

    async def enter(self, rows: int, cache_tokens: int = 0) -> Ticket:
        """A ticket that is admitted. Raises what ``queue`` raises."""
        ticket = self.queue(rows, cache_tokens)
        try:
            await ticket.admitted.wait()
        except asyncio.CancelledError:
            ticket.release()
            raise
        return ticket

    def free(self, ticket: Ticket) -> None:
        if ticket.admitted.is_set():
            self._give_back(ticket)
        else:
            self.waiting.remove(ticket)
        self._admit()

    def _fits(self, ticket: Ticket) -> bool:
        tokens = self.active_cache_tokens + ticket.cache_tokens
        fits_cache = self.max_cache_tokens is None or tokens <= self.max_cache_tokens
        return fits_cache and self.active + ticket.rows <= self.max_rows

    def _take(self, ticket: Ticket) -> None:
        self.active += ticket.rows
        self.active_cache_tokens += ticket.cache_tokens
        ticket.admitted.set()

    def _give_back(self, ticket: Ticket) -> None:
        self.active -= ticket.rows
        self.active_cache_tokens -= ticket.cache_tokens

    def _check_queue(self) -> None:
        if len(self.waiting) >= self.max_waiting:
            message = f"The server is overloaded: {len(self.waiting)} requests wait already. Try again soon."
            raise APIError(503, message, code="overloaded", headers={"Retry-After": "2"})

    def _admit(self) -> None:
        while self.waiting and self._fits(self.waiting[0]):
            self._take(self.waiting.popleft())
