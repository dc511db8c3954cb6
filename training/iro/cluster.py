"""A job's heavy steps over a Ray cluster. The job's own process stays the driver: it has the run, and checkpoints what
comes in, so that a job may change between here and there at any step."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from iro_server.alignment.placement import Placement
from iro_server.engines.base import Engine
from iro_server.engines.frozen_model import FrozenModel
from iro_server.graders.base import Grader
from iro_server.graders.environment import GraderEnvironment
from training.checkpoints import Checkpoints, SavedValue, open_checkpoints
from training.iro import executor
from training.iro.config import AlignConfig
from training.iro.fit import Scale, Shards
from training.iro.learners import Learner
from training.iro.pool import ClusterUnavailable, Pool, last_line
from training.iro.rollouts import Batch, roll_out
from training.iro.spread_grader import GraderActor, SpreadGrader
from training.iro.values import Bundles, Files, Stack
from training.json_values import JsonObject
from training.run import Run
from value_heads.bundle import TENSORS
from value_heads.peers import PeerLost, Rendezvous, joined_peers, rendezvous_store
from value_heads.tilt import TiltPart

if TYPE_CHECKING:
    from datasets import Dataset

REACH = 10.0  # seconds for a cluster to answer

Names = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Opening:
    """How an actor comes by its engine."""

    open_engine: Callable[[], Engine]
    config: AlignConfig
    bundles: Bundles


@contextmanager
def ray_executor(
    placement: Placement, run: Run, config: AlignConfig, bundles: Bundles, open_engine: Callable[[], Engine]
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

    has_frozen = False
    steers: frozenset[TiltPart] = frozenset()

    def load_frozen(self) -> FrozenModel:
        raise NotImplementedError("the frozen model is in other processes")

    def __init__(self, ray: Any, placement: Placement, run: Run, opening: Opening) -> None:
        self.ray, self.placement, self.run, self.opening = ray, placement, run, opening
        room = {"num_cpus": placement.ray_cpus, "num_gpus": placement.ray_gpus}
        self.engines = Pool(ray, run, room, EngineActor, opening)
        self.graders: list[Grader] = []
        self._packed: tuple[Stack, str, Any] | None = None

    def roll_out(self, batches: Sequence[Batch]) -> Generator[JsonObject, None, None]:
        work = [(replace(batch, stack=None), *self._shared(batch.stack)) for batch in batches]
        yield from self.engines.map("roll_out", work, self._size())

    def grader(self, grader: Grader) -> Grader:
        """Its actors ask for no CPU, which engines may have taken whole."""
        options = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
        spec, grader_environment = self.opening.config.grader, GraderEnvironment.of_this_process()
        pool = Pool(self.ray, self.run, options, GraderActor, spec, grader_environment)
        self.graders.append(SpreadGrader.over(pool, self._size(), grader))
        return self.graders[-1]

    def fit(
        self, learner: Learner, before: Stack | None, train: Shards, heldout: Shards, seed: int
    ) -> tuple[Files, Files, JsonObject]:
        """On nodes that read the shards where the run keeps its checkpoints: one, or several that share a batch."""
        files = None if before is None else self.opening.bundles.pack(before)
        work = (learner, files, train.names, heldout.names, train.scale, seed, self.run.checkpoints.location)
        size = min(self.placement.ray_fit_actors, self._size()) if learner.spreads else 1
        if size > 1:
            try:
                return self._fit_together(work, size)
            except (PeerLost, ClusterUnavailable) as error:
                self.run.emit("message", f"One process fits alone: {last_line(error)}", level="warn")
        (fitted,) = self.engines.map("fit", [(*work, None)], 1)
        return fitted

    def _fit_together(self, work: tuple[object, ...], size: int) -> tuple[Files, Files, JsonObject]:
        """What the first of them has fitted. PeerLost, or ClusterUnavailable: the others cannot go on without one."""
        host = self.ray.util.get_node_ip_address()
        with rendezvous_store(host) as port:
            shares = [(*work, Rendezvous(host, port, rank, size)) for rank in range(size)]
            fitted, *_ = self.engines.map("fit", shares, size, tries=1)
        return fitted

    def close(self) -> None:
        self.engines.close()
        for grader in self.graders:
            grader.close()

    def _size(self) -> int:
        """Engines that the cluster has room for."""
        has = self.ray.cluster_resources()
        needs = {"CPU": self.placement.ray_cpus, "GPU": self.placement.ray_gpus}
        fit = min(int(has.get(kind, 0) / count) for kind, count in needs.items() if count)
        return max(1, min(fit, self.placement.ray_actors or fit))

    def _shared(self, stack: Stack | None) -> tuple[str, Any, tuple[float, ...]]:
        """The stack's files in the cluster's memory and a key of what is in them, betas apart."""
        if stack is None:
            return "", None, ()
        if self._packed is None or self._packed[0] is not stack:
            files = self.opening.bundles.pack(stack)
            self._packed = (stack, hashlib.sha256(files[TENSORS].numpy().tobytes()).hexdigest(), self.ray.put(files))
        return self._packed[1], self._packed[2], tuple(stack.betas)


class EngineActor:
    """A frozen model of its own, opened when it is first asked for."""

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        self.engine: Engine | None = None
        self.stack: tuple[str, Stack] | None = None

    def ready(self) -> None:
        pass

    def roll_out(self, batch: Batch, key: str, files: Files | None, betas: tuple[float, ...]) -> JsonObject:
        if self.engine is None:
            self.engine = self.opening.open_engine()
        if files is None:
            return roll_out(self.engine, batch)
        if self.stack is None or self.stack[0] != key:
            self.stack = (key, self.opening.bundles.unpack(files))
        return roll_out(self.engine, replace(batch, stack=self.stack[1].with_betas(betas)))

    def fit(
        self,
        learner: Learner,
        before: Files | None,
        train: Names,
        heldout: Names,
        scale: Scale,
        seed: int,
        location: str,
        rendezvous: Rendezvous | None,
    ) -> tuple[Files, Files, JsonObject]:
        """The engine makes room first, and is opened again for the next rollouts."""
        self._let_go()
        checkpoints = open_checkpoints(location)
        if not all(checkpoints.has(name) for name in train[0]):
            message = f"a node of the Ray cluster does not see {location}: set IRO_STORAGE, or share that folder"
            raise ClusterUnavailable(message)
        stack = None if before is None else self.opening.bundles.unpack(before)
        parts = [Shards(_There(checkpoints), names, scale) for names in (train, heldout)]
        with closing(checkpoints), joined_peers(rendezvous):
            return executor.fit(self.opening.bundles, learner, stack, parts[0], parts[1], seed)

    def _let_go(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = self.stack = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class _There:
    """Shards as a node reads them. It is ended from without, and so never asks."""

    checkpoints: Checkpoints

    def load(self, name: str) -> SavedValue:
        return self.checkpoints.load(name)

    def table(self, name: str, table: str) -> Dataset:
        return self.checkpoints.table(name, table)

    def stop_if_asked(self) -> None:
        pass


@contextmanager
def _connected(address: str | None) -> Iterator[ModuleType]:
    try:
        import ray
    except ImportError as error:
        raise ClusterUnavailable("IRO_EXECUTOR=ray needs Ray: pip install 'iro-align[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as ending:
        folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="iro-ray-", ignore_cleanup_errors=True))
        ending.callback(ray.shutdown)
        quiet: JsonObject = {"log_to_driver": False, "logging_level": "WARNING", "configure_logging": False}
        if address is None:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray keeps one in the user's home
            ray.init("local", include_dashboard=False, _temp_dir=folder, **quiet)
        else:
            _join(ray, address, quiet)
        yield ray


def _join(ray: ModuleType, address: str, options: JsonObject) -> None:
    _reach(address)
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        message = f"no Ray cluster at {address} (IRO_RAY_ADDRESS): {last_line(error)}"
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
