"""When the requests under way must end: each at its own deadline, and all of them soon once the server is to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from iro_server.api.errors import APIError

Result = TypeVar("Result")


class Deadlines:
    """Times are the event loop's, in seconds."""

    def __init__(self) -> None:
        self._last: float | None = None  # of any request, once the server is to stop
        self._running: set[asyncio.Timeout] = set()

    def stop_within(self, seconds: float) -> None:
        """Let no request last longer than so many seconds from now."""
        self._last = asyncio.get_running_loop().time() + seconds
        for timeout in self._running:
            if not timeout.expired():
                timeout.reschedule(min(self._last, timeout.when() or self._last))

    async def by(self, deadline: float, work: Awaitable[Result]) -> Result:
        """``work``'s result; 504 past the deadline, 503 where the server stops before."""
        if self._last is not None:
            deadline = min(deadline, self._last)
        timeout = asyncio.timeout_at(deadline)
        try:
            async with timeout:
                self._running.add(timeout)
                return await work
        except TimeoutError:
            raise self._error(timeout.when()) from None
        finally:
            self._running.discard(timeout)

    def _error(self, when: float | None) -> APIError:
        if self._last is not None and when == self._last:
            message = "The server is being stopped, and the request was not done in time. Try again soon."
            return APIError(503, message, code="server_stopping", headers={"Retry-After": "2"})
        message = "The request took longer than this server lets one; ask for fewer tokens or a smaller search."
        return APIError(504, message, code="deadline_exceeded", headers={"x-should-retry": "false"})
