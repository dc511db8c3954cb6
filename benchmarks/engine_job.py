"""The alignment job on an engine that is open already, so that several jobs load one model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iro_server import JsonObject

if TYPE_CHECKING:
    from iro_server.engines.embedded import EmbeddedEngine
    from training.iro.job import AlignJob
    from training.run import Run


def engine_job(engine: EmbeddedEngine, model_dir: Path) -> AlignJob:
    """``model_dir``: the engine's model. The job draws no figures."""
    from iro_server.engines.describe import Description
    from training.iro.executor import LocalExecutor
    from training.iro.job import JOB
    from training.iro.loop import align

    description, executor = Description.of_engine(engine), LocalExecutor(engine, model_dir)

    def run(config: Any, run: Run) -> JsonObject:
        return align(config, run, description, executor)

    return replace(JOB, run=run, draw=None)
