"""What the server keeps in memory to use again: a bounded number of entries, each for a bounded time unused."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from iro_server.graders.base import Grader

Entry = TypeVar("Entry")


class Loaded(Generic[Entry]):
    """Entries by key, loaded at the first request. ``idle``: seconds. ``release`` is called with each dropped entry."""

    def __init__(self, most: int, idle: float, release: Callable[[Entry], None] = lambda entry: None) -> None:
        self.most, self.idle, self.release = most, idle, release
        self._entries: OrderedDict[str, tuple[Entry, float]] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str, load: Callable[[], Entry]) -> Entry:
        """The entry of ``key``; raises what ``load`` raises. Others wait meanwhile: nothing is loaded twice."""
        with self._lock:
            entry = self._entries[key][0] if key in self._entries else load()
            self._entries[key] = (entry, time.monotonic())
            self._entries.move_to_end(key)
            while len(self._entries) > self.most:
                self._release(next(iter(self._entries)))
            return entry

    def drop(self, key: str) -> None:
        with self._lock:
            if key in self._entries:
                self._release(key)

    def drop_where(self, belongs: Callable[[str], bool]) -> None:
        """Drop the entries whose keys are such."""
        with self._lock:
            for key in filter(belongs, list(self._entries)):
                self._release(key)

    def drop_idle(self) -> int:
        """How many were not used for ``idle`` seconds, and are gone."""
        with self._lock:
            oldest = time.monotonic() - self.idle
            idle = [key for key, (_, used) in self._entries.items() if used < oldest]
            for key in idle:
                self._release(key)
            return len(idle)

    def clear(self) -> None:
        with self._lock:
            for key in list(self._entries):
                self._release(key)

    def _release(self, key: str) -> None:
        entry, _ = self._entries.pop(key)
        self.release(entry)


class HeldGrader:
    """A grader that is closed once it is dropped and nobody uses it any more. A request that still holds it then may
    use it all the same."""

    def __init__(self, make: Callable[[], Grader]) -> None:
        self.make = make
        self._grader: Grader | None = make()
        self._users, self._dropped = 0, False
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[Grader]:
        with self._lock:
            self._grader = grader = self._grader or self.make()
            self._users += 1
        try:
            yield grader
        finally:
            self._close(users=1)

    def drop(self) -> None:
        self._dropped = True
        self._close()

    def _close(self, users: int = 0) -> None:
        with self._lock:
            self._users -= users
            if self._dropped and not self._users and self._grader is not None:
                self._grader.close()
                self._grader = None
