"""A job's heavy steps over a Ray cluster. The job's own process stays the driver: it has the run, and checkpoints what
comes in, so that a job may change between here and there at any step.

Engines and graders live in actors. A batch whose actor dies, with its node or alone, is given to another; the actor
starts again wherever there is room. Results come in the order of the batches, however they are computed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pydantic import PrivateAttr

from iro_server.graders import Grade, Grader, Sample, parse_grader
from iro_server.graders.base import Item
from iro_server.placement import Placement
from iro_server.surroundings import Surroundings
from training.checkpoints import Checkpoints, open_checkpoints
from training.iro import executor
from training.iro.config import AlignConfig
from training.iro.data import TokenizingEngine
from training.iro.fit import Scale, Shards
from training.iro.learners import Learner
from training.iro.rollouts import Batch, roll_out
from training.iro.values import Bundles, Files, Stack
from training.run import Run
from value_heads.bundle import TENSORS

POLL = 0.5  # seconds between looks at whether the job is to stop
PATIENCE = 60.0  # seconds without any process, after which the job tells
TRIES = 5  # of one piece of work whose process dies each time
MIN_SHARE = 8  # gradings that are worth another actor
REACH = 10.0  # seconds for a cluster to answer


class ClusterUnavailable(RuntimeError):
    """No Ray, no cluster, or one that cannot do the work: no fault of the job's, which may go on later."""

    code = "cluster_unavailable"


@dataclass(frozen=True)
class Opening:
    """How an actor comes by its engine."""

    open_engine: Callable[[], TokenizingEngine]
    config: AlignConfig
    bundles: Bundles


@contextmanager
def ray_executor(
    placement: Placement, run: Run, config: AlignConfig, bundles: Bundles, open_engine: Callable[[], TokenizingEngine]
) -> Iterator[RayExecutor]:
    """Over the cluster that ``placement`` says. ``open_engine`` is called on its nodes, and has to be picklable.

    Whatever the job still has in the cluster at the end is stopped. ClusterUnavailable where there is none.
    """
    with _connected(placement.ray_address) as ray:
        using = RayExecutor(ray, placement, run, Opening(open_engine, config, bundles))
        try:
            yield using
        finally:
            using.close()


class RayExecutor:
    """An ``Executor``; see ``ray_executor``."""

    def __init__(self, ray: Any, placement: Placement, run: Run, opening: Opening) -> None:
        self.ray, self.placement, self.run, self.opening = ray, placement, run, opening
        self.room = {"num_cpus": placement.ray_cpus, "num_gpus": placement.ray_gpus}
        self.engines = Pool(ray, run, self.room, EngineActor, opening)
        self.graders: list[Pool] = []
        self._packed: tuple[Stack, str, Any] | None = None

    def roll_out(self, batches: Sequence[Batch]) -> Generator[dict[str, Any], None, None]:
        work = [(replace(batch, stack=None), *self._shared(batch.stack)) for batch in batches]
        yield from self.engines.map("roll_out", work, self._size())

    def grader(self, grader: Grader) -> Grader:
        spec, surroundings = self.opening.config.grader, Surroundings.of_this_process()
        pool = Pool(
            self.ray, self.run, {"num_cpus": 0, "scheduling_strategy": "SPREAD"}, GraderActor, spec, surroundings
        )
        self.graders.append(pool)
        spread = RayGrader(type=grader.type, name=grader.name)
        spread._pool, spread._actors = pool, self._size()
        return spread

    def fit(
        self, learner: Learner, before: Stack | None, train: Shards, heldout: Shards, seed: int
    ) -> tuple[Files, dict[str, Any]]:
        """In one task on one node, which gets the room that the engines had."""
        self.engines.close()
        task = self.ray.remote(fit_there).options(**self.room, max_retries=TRIES)
        location = self.run.checkpoints.location
        files = None if before is None else self.opening.bundles.pack(before)
        names = (train.names, heldout.names)
        ref = task.remote(self.opening.bundles, learner, files, names, train.scale, seed, location)
        try:
            while not self.ray.wait([ref], timeout=POLL)[0]:
                self.run.stop_if_asked()
            return _result(self.ray, ref)
        except self.ray.exceptions.RayError as error:
            raise ClusterUnavailable(f"the value fit was lost {TRIES + 1} times: {_last_line(error)}") from error
        except BaseException:
            self.ray.cancel(ref, force=True)
            raise

    def close(self) -> None:
        for pool in (self.engines, *self.graders):
            pool.close()

    def _size(self) -> int:
        """Engines that the cluster has room for."""
        has = self.ray.cluster_resources()
        needs = {"CPU": self.placement.ray_cpus, "GPU": self.placement.ray_gpus}
        fit = min(int(has.get(kind, 0) / count) for kind, count in needs.items() if count)
        return max(1, min(fit, self.placement.ray_actors or fit))

    def _shared(self, stack: Stack | None) -> tuple[str, Any, tuple[float, ...]]:
        """A key of the stack, its files in the cluster's memory, and its betas, which neither depends on."""
        if stack is None:
            return "", None, ()
        if self._packed is None or self._packed[0] is not stack:
            files = self.opening.bundles.pack(stack)
            self._packed = (stack, hashlib.sha256(files[TENSORS].numpy().tobytes()).hexdigest(), self.ray.put(files))
        return self._packed[1], self._packed[2], tuple(stack.betas)


class Pool:
    """Actors of one kind, as many as there is work for."""

    def __init__(self, ray: Any, run: Run, options: dict[str, Any], kind: type, *arguments: Any) -> None:
        self.ray, self.run, self.arguments, self.room = ray, run, arguments, options
        self.kind = ray.remote(kind).options(**options, max_restarts=-1)
        self.actors: list[Any] = []

    def map(self, method: str, work: Sequence[tuple[Any, ...]], size: int) -> Generator[Any, None, None]:
        """``actor.method(*arguments)`` of each piece of work, in order. Closed early, it stops what is under way."""
        while len(self.actors) < min(size, len(work)):
            self.actors.append(self.kind.remote(*self.arguments))
        round = _Round(self, method, work)
        try:
            yield from round.results()
        finally:
            if round.unfinished:
                self.close()

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors.clear()


class _Round:
    """One ``Pool.map``: what waits, what each actor does, and what is done but not yet asked for."""

    def __init__(self, pool: Pool, method: str, work: Sequence[tuple[Any, ...]]) -> None:
        self.pool, self.ray, self.run = pool, pool.ray, pool.run
        self.method, self.work = method, work
        self.waiting = deque(range(len(work)))
        self.busy: dict[Any, tuple[Any, int | None]] = {}  # by the promise of a result; None: it starts
        self.idle: list[Any] = []
        self.done: dict[int, Any] = {}
        self.lost: Counter[int] = Counter()
        self.room_since = time.monotonic()
        self.told = False

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
        for ref in ready:
            self._take(ref, *self.busy.pop(ref))

    def _take(self, ref: Any, actor: Any, piece: int | None) -> None:
        try:
            value = _result(self.ray, ref)
        except self.ray.exceptions.RayError as error:
            self._lose(actor, piece, error)
            return
        self.idle.append(actor)
        if piece is not None:
            self.done[piece] = value

    def _lose(self, actor: Any, piece: int | None, error: Exception) -> None:
        if piece is None:
            raise ClusterUnavailable(f"a process of the Ray cluster does not start: {_last_line(error)}") from error
        self.lost[piece] += 1
        if self.lost[piece] == TRIES:
            message = f"{self.method} ended its process {TRIES} times on the Ray cluster: {_last_line(error)}"
            raise ClusterUnavailable(message) from error
        self.waiting.appendleft(piece)
        self._await_start(actor)

    def _tell_if_there_is_no_room(self) -> None:
        if len(self.busy) < len(self.pool.actors) or any(piece is not None for _, piece in self.busy.values()):
            self.room_since = time.monotonic()
        elif not self.told and time.monotonic() - self.room_since > PATIENCE:
            self.told = True
            asked = f"{self.pool.room['num_cpus']:g} CPU and {self.pool.room.get('num_gpus', 0):g} GPU"
            self.run.emit("message", f"The Ray cluster has no process of {asked} for the job yet", level="warn")


class EngineActor:
    """A frozen model of its own, opened for the first batch."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.engine: TokenizingEngine | None = None
        self.stack: tuple[str, Stack] | None = None

    def ready(self) -> None:
        pass

    def roll_out(self, batch: Batch, key: str, files: Files | None, betas: tuple[float, ...]) -> dict[str, Any]:
        if self.engine is None:
            self.engine = self.opening.open_engine()
        if files is not None and (self.stack is None or self.stack[0] != key):
            self.stack = (key, self.opening.bundles.unpack(files))
        stack = self.stack[1].with_betas(betas) if files is not None and self.stack else None
        return roll_out(self.engine, self.opening.config, replace(batch, stack=stack))


class GraderActor:
    def __init__(self, spec: dict[str, Any], surroundings: Surroundings) -> None:
        self.spec, self.surroundings = spec, surroundings
        self.grader: Grader | None = None

    def ready(self) -> None:
        pass

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        if self.grader is None:
            self.grader = parse_grader(self.spec, self.surroundings)
        return self.grader.grade_many(pairs)


class RayGrader(Grader):
    """A grader whose samples are graded on the cluster's nodes, where what it needs has to be."""

    _pool: Pool = PrivateAttr()
    _actors: int = PrivateAttr()

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        shares = max(1, min(self._actors, len(pairs) // MIN_SHARE))
        size = -(-len(pairs) // shares)
        work = [(pairs[start : start + size],) for start in range(0, len(pairs), size or 1)]
        return [grade for share in self._pool.map("grade_many", work, shares) for grade in share]


@dataclass(frozen=True)
class _There:
    """Shards as a node reads them. It is ended from without, and so never asks."""

    checkpoints: Checkpoints

    def load(self, name: str) -> Any:
        return self.checkpoints.load(name)

    def stop_if_asked(self) -> None:
        pass


def fit_there(
    bundles: Bundles,
    learner: Learner,
    before: Files | None,
    names: tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]],
    scale: Scale,
    seed: int,
    location: str,
) -> tuple[Files, dict[str, Any]]:
    checkpoints = open_checkpoints(location)
    train, heldout = (Shards(_There(checkpoints), part, scale) for part in names)
    if not all(checkpoints.has(name) for name in train.names[0]):
        raise ClusterUnavailable(
            f"a node of the Ray cluster does not see {location}: set IRO_STORAGE, or share the folder"
        )
    return executor.fit(bundles, learner, None if before is None else bundles.unpack(before), train, heldout, seed)


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    try:
        import ray
    except ImportError as error:
        raise ClusterUnavailable("IRO_EXECUTOR=ray needs Ray: pip install 'iro[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as ending:
        folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="iro-ray-", ignore_cleanup_errors=True))
        ending.callback(ray.shutdown)
        quiet = {"log_to_driver": False, "logging_level": "WARNING", "configure_logging": False}
        if address is None:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray keeps one in the user's home
            ray.init("local", include_dashboard=False, _temp_dir=folder, **quiet)
        else:
            _join(ray, address, quiet)
        yield ray


def _join(ray: Any, address: str, options: dict[str, Any]) -> None:
    _reach(address)
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        message = f"no Ray cluster at {address} (IRO_RAY_ADDRESS): {_last_line(error)}"
        raise ClusterUnavailable(message) from error


def _reach(address: str) -> None:
    """Ray itself waits for minutes before it says that nothing is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        raise ClusterUnavailable(f"IRO_RAY_ADDRESS is {address}: it has to be host:port, or ray://host:port")
    try:
        socket.create_connection((host, int(port)), REACH).close()
    except OSError as error:
        raise ClusterUnavailable(f"no Ray cluster at {address} (IRO_RAY_ADDRESS): {error}") from error


def _result(ray: Any, ref: Any) -> Any:
    """What the work returned, or raised: then as it did there. RayError where its process was lost."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
