"""Threads that projects share: each project has a queue and a limit of its own, and projects take turns."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from iro_server.concurrency.fair_slots import FairSlots

Result = TypeVar("Result")


class FairExecutor:
    """At most ``threads`` calls run at once, ``per_project`` of one project; ``max_waiting`` of a project wait, each
    for at most ``max_seconds``.

    Free threads go to the waiting projects in rotation. To be used from one event loop.
    """

    def __init__(
        self, name: str, threads: int, per_project: int, max_waiting: int, max_seconds: float | None = None
    ) -> None:
        self._executor = ThreadPoolExecutor(threads, name)
        self._slots = FairSlots(threads, per_project, max_waiting, max_seconds)

    async def run(self, project: str, call: Callable[..., Result], *args: object) -> Result:
        """The call's result. Raises what it raises; QueueFull where too many calls of the project wait, or for too
        long.

        A cancelled call leaves the queue; one that runs holds its thread until it returns.
        """
        await self._slots.enter(project)
        work = self._executor.submit(contextvars.copy_context().run, call, *args)
        self._leave_after(work, project)
        return await asyncio.wrap_future(work)

    def shutdown(self) -> None:
        """Take no further calls; those that run are not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _leave_after(self, work: Future[Result], project: str) -> None:
        loop = asyncio.get_running_loop()

        def done(_: Future[Result]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._slots.leave, project)

        work.add_done_callback(done)
