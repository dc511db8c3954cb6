"""When the requests under way must end: each at its own deadline, and all of them soon once the server is to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class DeadlineExceeded(Exception):
    """A request took longer than it may."""

    def __init__(self) -> None:
        super().__init__("The request took longer than this server lets one; ask for fewer tokens or a smaller search.")


class ServerStopping(Exception):
    """The server stops before a request is done."""

    def __init__(self) -> None:
        super().__init__("The server is being stopped, and the request was not done in time. Try again soon.")


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

    @asynccontextmanager
    async def until(self, deadline: float) -> AsyncGenerator[None]:
        """Cancels the block at ``deadline``. Raises DeadlineExceeded; ServerStopping where the server stops before."""
        if self._last is not None:
            deadline = min(deadline, self._last)
        timeout = asyncio.timeout_at(deadline)
        try:
            async with timeout:
                self._running.add(timeout)
                yield
        except TimeoutError:
            stops = self._last is not None and timeout.when() == self._last
            raise (ServerStopping if stops else DeadlineExceeded) from None
        finally:
            self._running.discard(timeout)
