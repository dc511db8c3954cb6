"""The sandboxes of this process: a few warm ones without code, a bound on those at work, a bound on those at rest.

A sandbox serves one grader: what has once run a user's code is never given to another.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from iro_server.concurrency.fair_queue import FairQueue
from iro_server.graders.ended import StartError
from iro_server.graders.environment import PythonLimits
from iro_server.graders.sandbox import Sandbox

AT_WORK = max(4, 2 * (os.cpu_count() or 1))
AT_WORK_PER_PROJECT = AT_WORK // 2
AT_REST = 8  # with their graders' code loaded
WARM = 2


class SandboxSlots:
    """At most ``slots`` are held at once, ``per_project`` by one project; projects that wait are served in rotation,
    a project's threads in the order they came."""

    def __init__(self, slots: int, per_project: int):
        self._lock = threading.Lock()
        self._queue: FairQueue[threading.Event] = FairQueue(slots, per_project)

    @contextlib.contextmanager
    def slot(self, project: str) -> Iterator[None]:
        admitted = threading.Event()
        with self._lock:
            if self._queue.enter(project, admitted):
                admitted.set()
        admitted.wait()
        try:
            yield
        finally:
            with self._lock:
                for waiter in self._queue.leave(project):
                    waiter.set()


class Pool:
    def __init__(self) -> None:
        self.slots = SandboxSlots(AT_WORK, AT_WORK_PER_PROJECT)
        self._lock = threading.Lock()
        self._warm: list[Sandbox] = []
        self._resting: list[Sandbox] = []  # the longest at rest first
        # One thread that lives as long as this process starts them all: they end with it.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandboxes")

    def take(self, limits: PythonLimits, isolated: bool) -> Sandbox:
        """A sandbox that has seen no code, and is the caller's to close. Raises StartError or OSError."""
        while sandbox := self._take_warm(limits, isolated):
            try:
                sandbox.ready()
                break
            except StartError:  # something ended it while it waited
                continue
        else:
            sandbox = self._starter.submit(Sandbox, limits, isolated).result()
            sandbox.ready()
        self._starter.submit(self._replace, limits, isolated)  # should it fail, so will the next take(), and say why
        return sandbox

    def rest(self, sandbox: Sandbox) -> None:
        """Its caller has nothing for it to do at present; it may be closed to make room."""
        with self._lock:
            self._resting.append(sandbox)
            crowded = self._resting.pop(0) if len(self._resting) > AT_REST else None
        if crowded:
            crowded.close()

    def wake(self, sandbox: Sandbox) -> bool:
        """Take it back. False: it has been closed."""
        with self._lock:
            if sandbox not in self._resting:
                return False
            self._resting.remove(sandbox)
            return True

    def _take_warm(self, limits: PythonLimits, isolated: bool) -> Sandbox | None:
        with self._lock:
            for sandbox in self._warm:
                if (sandbox.limits, sandbox.isolated) == (limits, isolated):
                    self._warm.remove(sandbox)
                    return sandbox
        return None

    def _replace(self, limits: PythonLimits, isolated: bool) -> None:
        sandbox = Sandbox(limits, isolated)
        with self._lock:
            self._warm.append(sandbox)
            crowded = self._warm.pop(0) if len(self._warm) > WARM else None
        if crowded:
            crowded.close()


POOL = Pool()
