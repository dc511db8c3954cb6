"""Endpoints that serve the frozen model, as settings and jobs name them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator

DEFAULT_KIND = "vllm"
Precision = Literal["float32", "bfloat16"]
KEY_VARIABLE = "IRO_ENGINE_KEY"  # read where it is needed: a key is in no config, log or run folder


class EngineRefused(ValueError):
    """A server of the model refuses a request as wrong. ``reason``: its own words, without its address."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return f"{self.url} refuses the request: {self.reason}"


class EngineUnavailable(RuntimeError):
    """None of the model's servers answered in time."""


class SchemaViolated(EngineUnavailable):
    """An answer of a server of the model does not fit the schema that it was asked for."""


def base_url(url: str) -> str:
    """``url`` as a base that /completions can follow. ValueError where it is no URL."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"{url!r} is not the base URL of an engine, such as http://127.0.0.1:8001/v1")
    if address.username or address.password:
        raise ValueError(f"the URL of an engine holds no password: give the key as {KEY_VARIABLE}")
    return url.rstrip("/") if address.path.strip("/") else f"{url.rstrip('/')}/v1"


def checked_key(key: str, variable: str) -> str:
    """``key`` as a header can hold it, without spaces and line ends around it. ValueError, which names the ``variable``
    that it is from and not the key, for any other control or non-ASCII character."""
    stripped = key.strip()
    if not (stripped.isascii() and stripped.isprintable()):
        raise ValueError(f"{variable} holds a control or non-ASCII character, which no HTTP header takes")
    return stripped


EngineUrl = Annotated[str, AfterValidator(base_url)]


@dataclass(frozen=True)
class Endpoints:
    """The engine of the frozen model and its servers; without ``urls`` it runs in this process. Times in seconds.

    ``kind``: a key of ``opening.ENGINES``. ``model``: its name on the servers; None: the first that is served.
    ``timeout``: the longest that one answer may take. ``patience``: how long a request waits, from the first failure
    on, for a server that answers. ``adapters``: a directory that vLLM servers read too, where tilts are written as LoRA
    adapters; None: servers without LoRA. ``precision``: of the products of an engine in this process on a CPU.
    ValueError for a ``key`` that no header takes.
    """

    urls: tuple[str, ...] = ()
    kind: str = DEFAULT_KIND
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    timeout: float = 600.0
    patience: float = 30.0
    adapters: Path | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.key is not None:
            object.__setattr__(self, "key", checked_key(self.key, KEY_VARIABLE))

    @property
    def embedded(self) -> bool:
        """Whether the embedded engine runs the model, as it does by default where no URL is set."""
        return not self.urls and self.kind in (DEFAULT_KIND, "embedded")
