"""What the server keeps in memory to use again: so many things at most, and each for so long unused."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from iro_server.graders import Grader

Thing = TypeVar("Thing")


class Loaded(Generic[Thing]):
    """Things by key, loaded when they are first asked for. ``idle``: seconds. ``release`` is told of each that goes."""

    def __init__(self, most: int, idle: float, release: Callable[[Thing], None] = lambda thing: None) -> None:
        self.most, self.idle, self.release = most, idle, release
        self._things: OrderedDict[str, tuple[Thing, float]] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._things)

    def get(self, key: str, load: Callable[[], Thing]) -> Thing:
        """The thing of ``key``; raises what ``load`` raises. Others wait meanwhile: nothing is loaded twice."""
        with self._lock:
            thing = self._things[key][0] if key in self._things else load()
            self._things[key] = (thing, time.monotonic())
            self._things.move_to_end(key)
            while len(self._things) > self.most:
                self._release(next(iter(self._things)))
            return thing

    def drop(self, key: str) -> None:
        with self._lock:
            if key in self._things:
                self._release(key)

    def drop_idle(self) -> int:
        """How many were not used for ``idle`` seconds, and are gone."""
        with self._lock:
            oldest = time.monotonic() - self.idle
            idle = [key for key, (_, used) in self._things.items() if used < oldest]
            for key in idle:
                self._release(key)
            return len(idle)

    def clear(self) -> None:
        with self._lock:
            for key in list(self._things):
                self._release(key)

    def _release(self, key: str) -> None:
        thing, _ = self._things.pop(key)
        self.release(thing)


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
