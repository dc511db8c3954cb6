"""Places that projects share: each takes a bounded number of them, and those that wait are served in rotation."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")


class QueueFull(Exception):
    """As many calls of the project wait as may."""


class FairQueue(Generic[Waiter]):
    """At most ``places`` are taken at once, ``per_project`` by one project; ``max_waiting`` of a project wait, any
    number where that is None. Not for two threads at once."""

    def __init__(self, places: int, per_project: int, max_waiting: int | None = None) -> None:
        self.places, self.per_project, self.max_waiting = places, per_project, max_waiting
        self._taken: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[Waiter]] = OrderedDict()  # by project, next to be served first

    def enter(self, project: str, waiter: Waiter) -> bool:
        """True: the project has taken a place. False: ``waiter`` waits until ``leave`` returns it. Raises QueueFull."""
        if self._has_room(project):
            self._taken[project] += 1
            return True
        waiting = len(self._waiting.get(project, ()))
        if self.max_waiting is not None and waiting >= self.max_waiting:
            raise QueueFull(f"{waiting} calls of this project wait")
        self._waiting.setdefault(project, deque()).append(waiter)
        return False

    def leave(self, project: str) -> list[Waiter]:
        """Give a place of the project back. Returns the waiters that have a place now."""
        self._taken[project] -= 1
        if not self._taken[project]:
            del self._taken[project]
        admitted = []
        while (next_project := next(filter(self._has_room, self._waiting), None)) is not None:
            self._taken[next_project] += 1
            admitted.append(self._waiting[next_project].popleft())
            self._waiting.move_to_end(next_project)
            self._drop_if_empty(next_project)
        return admitted

    def withdraw(self, project: str, waiter: Waiter) -> bool:
        """Wait no longer. False: ``waiter`` has a place, which is to be given back."""
        if waiter not in self._waiting.get(project, ()):
            return False
        self._waiting[project].remove(waiter)
        self._drop_if_empty(project)
        return True

    def _has_room(self, project: str) -> bool:
        return self._taken.total() < self.places and self._taken[project] < self.per_project

    def _drop_if_empty(self, project: str) -> None:
        if not self._waiting[project]:
            del self._waiting[project]
