"""How many tables are converted to JSONL at once: each takes a process with a gigabyte of memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from iro_server.concurrency.fair_queue import FairQueue, QueueFull


class ConversionSlots:
    """At most ``slots`` conversions run at once, one of a project; one more of a project waits, for ``max_seconds``.

    For threads; projects are served in rotation.
    """

    def __init__(self, slots: int = 2, max_seconds: float = 60.0) -> None:
        self.max_seconds = max_seconds
        self._lock = threading.Lock()
        self._queue: FairQueue[threading.Event] = FairQueue(slots, per_project=1, max_waiting=1)

    @contextmanager
    def hold(self, project: str) -> Iterator[None]:
        """Raises QueueFull where another conversion of the project waits already, or none ends in time."""
        admitted = threading.Event()
        with self._lock:
            has_slot = self._queue.enter(project, admitted)
        if not has_slot:
            self._wait(project, admitted)
        try:
            yield
        finally:
            with self._lock:
                for waiter in self._queue.leave(project):
                    waiter.set()

    def _wait(self, project: str, admitted: threading.Event) -> None:
        if admitted.wait(self.max_seconds):
            return
        with self._lock:
            if self._queue.withdraw(project, admitted):  # else it was admitted in the same instant
                raise QueueFull(f"a Parquet or CSV file of this project has waited for {self.max_seconds:g} s")


SLOTS = ConversionSlots()  # of this server
