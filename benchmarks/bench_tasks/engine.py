"""The engine of a run's pieces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.bench_tasks.config import BenchTasksConfig
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.endpoints import Precision
from iro_server.engines.prepare import prepare_model
from iro_server.engines.vllm import ADAPTED_PARTS


class VLLMTilts(EmbeddedEngine):
    """The frozen model in process, whose jobs fit the tilts that they would on vLLM with adapters."""

    def __init__(self, model_dir: Path, precision: Precision) -> None:
        super().__init__(model_dir, precision=precision)
        self._info = replace(self._info, steers=ADAPTED_PARTS)


def open_engine(config: BenchTasksConfig) -> EmbeddedEngine:
    kind = VLLMTilts if config.vllm_tilts else EmbeddedEngine
    return kind(prepare_model(), precision=config.engine_precision)
