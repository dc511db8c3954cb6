"""An alignment of the toy language model over Ray, as a server's worker finds it: where ``Placement`` says."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch.distributed as dist

from iro_server.alignment.placement import Placement
from tests.training.iro.toy_job import MODEL, Toy
from training.iro.cluster import ray_executor
from training.iro.config import AlignConfig
from training.iro.fit import FitSource, Shards
from training.iro.job import AlignJob
from training.iro.learners import LoraLearner
from training.iro.loop import align
from training.iro.values import Bundles, Stack
from training.run import Run


class Slow(Toy):
    """Leaves a file in ``folder`` for each prompt, which tells its process, and takes its time."""

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__()
        self.folder, self.seconds = folder, seconds

    async def open(self, *args: Any, **kwargs: Any) -> Any:
        (self.folder / f"{os.getpid()}-{uuid4().hex}").touch()
        time.sleep(self.seconds)
        return await super().open(*args, **kwargs)


class Marked(LoraLearner):
    """Leaves a file in ``folder`` for each batch of a fit, which tells its rank and process, and takes its time."""

    def __init__(self, folder: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.folder = folder

    def fit(self, before: Stack | None, train: Shards, heldout: Shards, seed: int) -> tuple[Stack, dict[str, Any]]:
        return super().fit(before, replace(train, source=_Marking(train.source, self.folder)), heldout, seed)


@dataclass(frozen=True)
class _Marking:
    source: FitSource
    folder: Path

    def load(self, name: str) -> Any:
        return self.source.load(name)

    def table(self, name: str, table: str) -> Any:
        return self.source.table(name, table)

    def stop_if_asked(self) -> None:
        rank = dist.get_rank() if dist.is_initialized() else "alone"
        (self.folder / f"{rank}-{os.getpid()}-{uuid4().hex}").touch()
        time.sleep(0.05)
        self.source.stop_if_asked()


def ray_job(placement: Placement | None = None, seconds: float = 0.0) -> AlignJob:
    """``placement`` None: that of the environment."""

    def run(config: AlignConfig, run: Run) -> dict[str, Any]:
        folder = run.folder / "sampled"
        folder.mkdir(exist_ok=True)
        opening, bundles = partial(Slow, folder, seconds), Bundles(Toy.info, config.model_dir)
        with ray_executor(placement or Placement(), run, config, bundles, opening) as executor:
            return align(config, run, MODEL, executor)

    return AlignJob("align", "", AlignConfig, run)


JOB = ray_job(seconds=0.05)
