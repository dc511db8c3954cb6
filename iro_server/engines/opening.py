"""Which engine serves: the embedded one, or one over the endpoints that are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.endpoints import EngineKind
from iro_server.engines.text import TextEngine
from iro_server.engines.vllm import VLLMEngine


def open_engine(
    model_dir: Path,
    name: str | None,
    urls: Sequence[str] = (),
    kind: EngineKind = "vllm",
    model: str | None = None,
    key: str | None = None,
    patience: float = 30.0,
) -> EmbeddedEngine | VLLMEngine | TextEngine:
    """An engine to be closed. Without ``urls`` it loads the model; else they serve it, ``model`` by name.

    ``patience``: seconds that a request waits for an endpoint which fails. ValueError and EngineUnavailable as
    ``RemoteEngine``.
    """
    if not urls:
        return EmbeddedEngine(model_dir, name)
    kind_of: type[VLLMEngine] | type[TextEngine] = TextEngine if kind == "text" else VLLMEngine
    timing = replace(kind_of.timing, patience=patience)
    return kind_of(model_dir, urls, name=name, key=key, model=model, timing=timing)
