"""Actors of a Ray cluster that take pieces of work, whichever of them is free.

A piece whose actor dies, with its node or alone, is given to another; the actor starts again wherever there is room.
Results come in the order of the pieces, however they are computed.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from types import ModuleType
from typing import Any

from training.json_values import JsonObject
from training.run import Run

POLL = 0.5  # seconds between looks at whether the job is to stop
PATIENCE = 60.0  # seconds without any process, after which the job tells
TRIES = 5  # of one piece of work whose process dies each time


class ClusterUnavailable(OSError):
    """No Ray, no cluster, or one that cannot do the work: no fault of the job's, which may go on later."""

    code = "cluster_unavailable"


class Pool:
    """Actors of one ``kind``, which has a method ``ready``; as many as there has been work for. ``options``: Ray's."""

    def __init__(self, ray: ModuleType, run: Run, options: JsonObject, kind: type, *arguments: object) -> None:
        self.ray, self.run, self.options, self.arguments = ray, run, options, arguments
        self.kind = ray.remote(kind).options(**options, max_restarts=-1)
        self.actors: list[Any] = []

    def map(
        self, method: str, work: Sequence[tuple[object, ...]], size: int, tries: int = TRIES
    ) -> Generator[Any, None, None]:
        """``actor.method(*arguments)`` of each piece of work, by up to ``size`` actors. Raises what it raised.

        Closed before it has all, or stopped with the run, it ends the actors and what they do. ClusterUnavailable where
        the work cannot be done.
        """
        while len(self.actors) < min(size, len(work)):
            self.actors.append(self.kind.remote(*self.arguments))
        round = _Round(self, method, work, tries)
        try:
            yield from round.results()
        except self.ray.exceptions.RayError as error:  # of the cluster itself, such as its head
            raise ClusterUnavailable(f"the Ray cluster fails: {last_line(error)}") from error
        finally:
            if round.unfinished:
                self.close()

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors.clear()


class _Round:
    """One ``Pool.map``: what waits, what each actor does, and what is done but not yet asked for."""

    def __init__(self, pool: Pool, method: str, work: Sequence[tuple[object, ...]], tries: int) -> None:
        self.pool, self.ray, self.run = pool, pool.ray, pool.run
        self.method, self.work, self.tries = method, work, tries
        self.waiting = deque(range(len(work)))
        self.busy: dict[Any, tuple[Any, int | None]] = {}  # by the promise of a result; None: it starts
        self.idle: list[Any] = []
        self.done: dict[int, Any] = {}
        self.lost: Counter[int] = Counter()
        self.since = time.monotonic()  # when an actor was last seen to live
        self.warned = False

    @property
    def unfinished(self) -> bool:
        return bool(self.waiting) or any(piece is not None for _, piece in self.busy.values())

    def results(self) -> Generator[Any, None, None]:
        for actor in self.pool.actors if self.work else ():
            self._await_start(actor)
        for wanted in range(len(self.work)):
            while wanted not in self.done:
                self._step(wanted)
            yield self.done.pop(wanted)

    def _await_start(self, actor: Any) -> None:
        self.busy[actor.ready.options(max_task_retries=-1).remote()] = (actor, None)

    def _step(self, wanted: int) -> None:
        # No further ahead than twice the actors: results wait in the driver's memory.
        while self.idle and self.waiting and self.waiting[0] < wanted + 2 * len(self.pool.actors):
            actor, piece = self.idle.pop(), self.waiting.popleft()
            self.busy[getattr(actor, self.method).remote(*self.work[piece])] = (actor, piece)
        self.run.stop_if_asked()
        self._tell_if_there_is_no_room()
        ready, _ = self.ray.wait(list(self.busy), timeout=POLL)
        for promise in ready:
            self._take(promise, *self.busy.pop(promise))

    def _take(self, promise: Any, actor: Any, piece: int | None) -> None:
        try:
            value = self._get(promise)
        except self.ray.exceptions.RayError as error:
            self._lose(actor, piece, error)
            return
        self.idle.append(actor)
        if piece is not None:
            self.done[piece] = value

    def _get(self, promise: Any) -> Any:
        """What the work returned, or raised: then as it did there. RayError where its process was lost."""
        try:
            return self.ray.get(promise)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise

    def _lose(self, actor: Any, piece: int | None, error: Exception) -> None:
        if piece is None:
            raise ClusterUnavailable(f"a process of the Ray cluster does not start: {last_line(error)}") from error
        self.lost[piece] += 1
        if self.lost[piece] == self.tries:
            message = f"{self.method} ended its process on the Ray cluster (tries: {self.tries}): {last_line(error)}"
            raise ClusterUnavailable(message) from error
        self.waiting.appendleft(piece)
        self._await_start(actor)

    def _tell_if_there_is_no_room(self) -> None:
        if len(self.busy) < len(self.pool.actors) or any(piece is not None for _, piece in self.busy.values()):
            self.since = time.monotonic()
        elif not self.warned and time.monotonic() - self.since > PATIENCE:
            self.warned = True
            resources = f"{self.pool.options['num_cpus']:g} CPU and {self.pool.options.get('num_gpus', 0):g} GPU"
            self.run.emit("message", f"The Ray cluster has no process of {resources} for the job yet", level="warn")


def last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
