"""Where a job's heavy steps are computed: in this process, or over a cluster (``cluster.py``).

Each is a function of what it is given alone, so that where it is computed does not show in the result.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from iro_server.engines.base import Engine
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.weights import missing_shards
from iro_server.graders.base import Grader
from training.iro.fit import Shards
from training.iro.learners import Learner
from training.iro.rollouts import Batch, roll_out
from training.iro.values import Bundles, Files, Stack
from training.json_values import JsonObject
from value_heads.threads import on_fresh_thread
from value_heads.tilt import TiltPart


class Executor(Protocol):
    @property
    def steers(self) -> frozenset[TiltPart]:
        """The parts of a tilt that the job may fit; none where the frozen model cannot be in this process."""
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

    @property
    def steers(self) -> frozenset[TiltPart]:
        is_here = self.model_dir is not None and not missing_shards(self.model_dir)
        return self.engine.info.steers if is_here or isinstance(self.engine, EmbeddedEngine) else frozenset()

    def load_frozen(self) -> FrozenModel:
        if isinstance(self.engine, EmbeddedEngine):
            return self.engine.frozen
        assert self.model_dir is not None
        return FrozenModel(self.model_dir, "cuda" if torch.cuda.is_available() else "cpu")

    def roll_out(self, batches: Sequence[Batch]) -> Generator[JsonObject, None, None]:
        for batch in batches:
            yield roll_out(self.engine, batch)

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
