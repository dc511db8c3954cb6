"""Where a job's heavy steps are computed: in this process, or over a cluster (``cluster.py``).

Each is a function of what it is given alone, so that where it is computed does not show in the result.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from iro_server.engines.base import Engine
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.weights import missing_shards, weight_files
from iro_server.graders.base import Grader
from training.iro.fit import Shards
from training.iro.head_states import head_states
from training.iro.learners import Learner
from training.iro.rollouts import Batch, StatesOf, roll_out
from training.iro.values import Bundles, Files, Stack
from training.json_values import JsonObject
from value_heads.threads import on_fresh_thread
from value_heads.tilt import TiltPart


class Executor(Protocol):
    @property
    def has_frozen(self) -> bool:
        """Whether the frozen model can be in this process, which tilts and values of its states are fitted with."""
        ...

    @property
    def steers(self) -> frozenset[TiltPart]:
        """The parts of a tilt that the job may fit; none without the frozen model."""
        ...

    def load_frozen(self) -> FrozenModel:
        """The frozen model in this process: tilts are fitted with its output head, and its states where rollouts came
        without them. A copy to be dropped after use where servers run the model."""
        ...

    def roll_out(self, batches: Sequence[Batch]) -> Generator[JsonObject, None, None]:
        """What ``rollouts.roll_out`` gives for each batch, in their order. To be closed when it is not used up."""
        ...

    def grader(self, grader: Grader) -> Grader:
        """One that grades as ``grader`` does."""
        ...

    def fit(
        self, learner: Learner, before: Stack | None, train: Shards, heldout: Shards, seed: int
    ) -> tuple[Files, Files, JsonObject]:
        """What ``learner.fit`` gives, its stacks as the files of their bundles."""
        ...


class LocalExecutor:
    """Computes every step in this process, one batch at a time. ``model_dir``: the directory of the engine's model."""

    def __init__(self, engine: Engine, model_dir: Path | None) -> None:
        self.engine = engine
        self.bundles = Bundles(engine.info, model_dir)
        self.model_dir = model_dir
        self._frozen: weakref.ref[FrozenModel] | None = None  # while somebody uses it

    @property
    def has_frozen(self) -> bool:
        if isinstance(self.engine, EmbeddedEngine):
            return True
        folder = self.model_dir
        return folder is not None and bool(weight_files(folder)) and not missing_shards(folder)

    @property
    def steers(self) -> frozenset[TiltPart]:
        return self.engine.info.steers if self.has_frozen else frozenset()

    def load_frozen(self) -> FrozenModel:
        if isinstance(self.engine, EmbeddedEngine):
            return self.engine.frozen
        assert self.model_dir is not None
        frozen = None if self._frozen is None else self._frozen()
        if frozen is None:
            frozen = FrozenModel(self.model_dir, "cuda" if torch.cuda.is_available() else "cpu")
            self._frozen = weakref.ref(frozen)
        return frozen

    def roll_out(self, batches: Sequence[Batch]) -> Generator[JsonObject, None, None]:
        states_of = None if self.engine.info.hidden else self._recomputed()
        for batch in batches:
            yield roll_out(self.engine, batch, states_of)

    def _recomputed(self) -> StatesOf:
        """By a frozen model that is loaded when it is first needed, and dropped with this function."""
        frozen = cache(self.load_frozen)
        return lambda prompt_ids, completions: head_states(frozen(), prompt_ids, completions)

    def grader(self, grader: Grader) -> Grader:
        return grader

    def fit(
        self, learner: Learner, before: Stack | None, train: Shards, heldout: Shards, seed: int
    ) -> tuple[Files, Files, JsonObject]:
        return fit(self.bundles, learner, before, train, heldout, seed)


def fit(
    bundles: Bundles, learner: Learner, before: Stack | None, train: Shards, heldout: Shards, seed: int
) -> tuple[Files, Files, JsonObject]:
    learned = on_fresh_thread(lambda: learner.fit(before, train, heldout, seed))
    bundle = bundles.pack(learned.stack)
    judged = bundle if learned.judged is learned.stack else bundles.pack(learned.judged)
    return bundle, judged, learned.report
