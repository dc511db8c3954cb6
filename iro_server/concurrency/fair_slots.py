"""Places that projects take in turns, for work on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from iro_server.concurrency.fair_queue import FairQueue, QueueFull


class FairSlots:
    """At most ``places`` are taken at once, ``per_project`` by one project; ``max_waiting`` of a project wait, each for
    at most ``max_seconds``. Free places go to the waiting projects in rotation. To be used from one event loop.
    """

    def __init__(self, places: int, per_project: int, max_waiting: int, max_seconds: float | None = None) -> None:
        self.max_seconds = max_seconds
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(places, per_project, max_waiting)

    @asynccontextmanager
    async def slot(self, project: str) -> AsyncIterator[None]:
        """Hold a place. Raises QueueFull where too many of the project wait, or for too long."""
        await self.enter(project)
        try:
            yield
        finally:
            self.leave(project)

    async def enter(self, project: str) -> None:
        """Take a place, once there is one; ``leave`` must follow. Raises QueueFull."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._queue.enter(project, admitted):
            return
        try:
            async with asyncio.timeout(self.max_seconds):
                await admitted
        except BaseException as error:
            if not self._queue.withdraw(project, admitted):  # it was admitted in the same instant
                self.leave(project)
            if isinstance(error, TimeoutError):
                raise QueueFull(f"a call of this project has waited for {self.max_seconds:g} s") from None
            raise

    def leave(self, project: str) -> None:
        for admitted in self._queue.leave(project):
            if not admitted.done():  # else it was cancelled, and leaves by itself
                admitted.set_result(None)
