"""Which requests generate now: as many rows at once as the server is told, first come first served; the others wait."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from iro_server.api.errors import APIError


@dataclass
class Ticket:
    """A place among the requests that generate. ``release`` it, once or more, however the request ends."""

    admission: Admission
    rows: int
    held: bool = True

    def release(self) -> None:
        if self.held:
            self.held = False
            self.admission.free(self.rows)


@dataclass
class Admission:
    """``max_rows`` of all requests together, ``max_waiting`` requests in the queue. A request of more rows than all
    runs alone."""

    max_rows: int
    max_waiting: int
    active: int = 0
    waiting: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)

    async def enter(self, rows: int) -> Ticket:
        """A ticket, once it is the request's turn. 503 where too many wait already."""
        rows = min(rows, self.max_rows)
        if self.waiting or self.active + rows > self.max_rows:
            await self._wait(rows)
        else:
            self.active += rows
        return Ticket(self, rows)

    def free(self, rows: int) -> None:
        self.active -= rows
        self._admit()

    async def _wait(self, rows: int) -> None:
        if len(self.waiting) >= self.max_waiting:
            message = f"The server is overloaded: {len(self.waiting)} requests wait already. Try again soon."
            raise APIError(503, message, code="overloaded", headers={"Retry-After": "2"})
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((rows, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the same instant
                self.active -= rows
            self._admit()
            raise

    def _admit(self) -> None:
        self.waiting = deque(place for place in self.waiting if not place[1].cancelled())
        while self.waiting and self.active + self.waiting[0][0] <= self.max_rows:
            rows, turn = self.waiting.popleft()
            self.active += rows
            turn.set_result(None)
