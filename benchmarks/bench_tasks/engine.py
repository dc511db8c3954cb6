"""The engine of a run's pieces."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.bench_tasks.config import BenchTasksConfig
from iro_server.engines.base import ModelInfo
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from iro_server.engines.vllm import ADAPTED_PARTS


class VLLMTilts(EmbeddedEngine):
    """The frozen model in process, whose jobs fit the tilts that they would on vLLM with adapters."""

    @property
    def info(self) -> ModelInfo:
        return replace(super().info, steers=ADAPTED_PARTS)


def open_engine(config: BenchTasksConfig) -> EmbeddedEngine:
    return (VLLMTilts if config.vllm_tilts else EmbeddedEngine)(prepare_model())
