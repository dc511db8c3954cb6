"""Threads that projects share: each project has a queue and a limit of its own, and projects take turns."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from iro_server.api.errors import APIError

Result = TypeVar("Result")


class FairExecutor:
    """At most ``threads`` calls run at once, ``per_project`` of one project; ``max_waiting`` of a project wait.

    Free threads go to the waiting projects in rotation. To be used from one event loop.
    """

    def __init__(self, name: str, threads: int, per_project: int, max_waiting: int) -> None:
        self.threads, self.per_project, self.max_waiting = threads, per_project, max_waiting
        self._executor = ThreadPoolExecutor(threads, name)
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by project, next to run first

    async def run(self, project: str, call: Callable[..., Result], *args: Any) -> Result:
        """The call's result. Raises what it raises; 503 where too many calls of the project wait.

        A cancelled call leaves the queue; one that runs holds its thread until it returns.
        """
        await self._enter(project)
        work = self._executor.submit(contextvars.copy_context().run, call, *args)
        self._leave_after(work, project)
        return await asyncio.wrap_future(work)

    def shutdown(self) -> None:
        """Take no further calls; those that run are not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _leave_after(self, work: Future[Any], project: str) -> None:
        loop = asyncio.get_running_loop()

        def done(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._leave, project)

        work.add_done_callback(done)

    async def _enter(self, project: str) -> None:
        if self._has_room(project):
            self._running[project] += 1
            return
        self._check_queue(project)
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(project, deque()).append(admitted)
        try:
            await admitted
        except asyncio.CancelledError:
            self._abandon(project, admitted)
            raise

    def _has_room(self, project: str) -> bool:
        return self._running.total() < self.threads and self._running[project] < self.per_project

    def _check_queue(self, project: str) -> None:
        waiting = len(self._waiting.get(project, ()))
        if waiting >= self.max_waiting:
            message = f"The server is overloaded: {waiting} calls of graders of this project wait. Try again soon."
            raise APIError(503, message, code="overloaded", headers={"Retry-After": "5"})

    def _abandon(self, project: str, admitted: asyncio.Future[None]) -> None:
        if not admitted.cancelled():  # it was admitted in the same instant
            self._leave(project)
        elif admitted in (queue := self._waiting.get(project, deque())):
            queue.remove(admitted)
            if not queue:
                del self._waiting[project]

    def _leave(self, project: str) -> None:
        self._running[project] -= 1
        if not self._running[project]:
            del self._running[project]
        self._admit()

    def _admit(self) -> None:
        while (project := next(filter(self._has_room, self._waiting), None)) is not None:
            admitted = self._waiting[project].popleft()
            self._waiting.move_to_end(project)
            if not self._waiting[project]:
                del self._waiting[project]
            if not admitted.cancelled():
                self._running[project] += 1
                admitted.set_result(None)
