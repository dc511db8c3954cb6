"""The engines by kind. Each opener imports its engine when it is called, so that settings load without torch.

To add an engine: a class with the protocol ``base.Engine``, an opener and its line in ``ENGINES``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from iro_server.engines.endpoints import Endpoints

if TYPE_CHECKING:
    from iro_server.engines.base import Engine


def _open_embedded(model_dir: Path, endpoints: Endpoints, name: str | None) -> Engine:
    from iro_server.engines.embedded import EmbeddedEngine

    if endpoints.urls:
        raise ValueError("the embedded engine runs in this process: it takes no engine URLs")
    return EmbeddedEngine(model_dir, name, precision=endpoints.precision)


def _open_vllm(model_dir: Path, endpoints: Endpoints, name: str | None) -> Engine:
    from iro_server.engines.vllm import VLLMEngine

    return VLLMEngine(model_dir, endpoints, name)


def _open_text(model_dir: Path, endpoints: Endpoints, name: str | None) -> Engine:
    from iro_server.engines.text import TextEngine

    return TextEngine(model_dir, endpoints, name)


ENGINES: dict[str, Callable[[Path, Endpoints, str | None], Engine]] = {
    "embedded": _open_embedded,
    "vllm": _open_vllm,
    "text": _open_text,
}


def check_kind(kind: str) -> str:
    """``kind`` itself. ValueError where ``ENGINES`` has no such kind."""
    if kind not in ENGINES:
        raise ValueError(f"no engine of kind {kind!r}: the kinds are {', '.join(ENGINES)}")
    return kind


EngineKind = Annotated[str, AfterValidator(check_kind)]


def open_engine(model_dir: Path, name: str | None, endpoints: Endpoints) -> Engine:
    """An engine to be closed, as ``endpoints`` says.

    ValueError for an unknown kind, or for endpoints that the engine cannot use. EngineUnavailable as ``RemoteEngine``.
    """
    kind = "embedded" if endpoints.embedded else check_kind(endpoints.kind)
    if kind != "embedded" and endpoints.precision != "float32":
        raise ValueError("engine_precision is of an engine in this process: the model's servers have their own")
    return ENGINES[kind](model_dir, endpoints, name)
