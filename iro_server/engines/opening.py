"""Which engine serves: the embedded one, or one over the endpoints that are given."""

from __future__ import annotations

from pathlib import Path

from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.text import TextEngine
from iro_server.engines.vllm import VLLMEngine


def open_engine(model_dir: Path, name: str | None, endpoints: Endpoints) -> EmbeddedEngine | VLLMEngine | TextEngine:
    """An engine to be closed. ValueError and EngineUnavailable as ``RemoteEngine``."""
    if not endpoints.urls:
        return EmbeddedEngine(model_dir, name)
    kind = TextEngine if endpoints.kind == "text" else VLLMEngine
    return kind(model_dir, endpoints, name)
