"""The request that is being answered, known to all that is done for it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import monotonic

from iro_server.telemetry import metrics

CHARGED_KEY = "Iro-Charged-Key"  # header by which this server's graders name the key whose request they grade


@dataclass
class Current:
    """``charged_key``: the id of the API key whose allowance the request's tokens count against; None: nobody's."""

    id: str
    started: float = field(default_factory=monotonic)
    generating: bool = False  # some of its text is there
    charged_key: str | None = None


_current: ContextVar[Current | None] = ContextVar("request", default=None)
set_current = _current.set  # never taken back: the task that answers a request ends with it


def request_id() -> str | None:
    """None outside of a request."""
    current = _current.get()
    return current.id if current else None


def charged_key() -> str | None:
    """The id of the API key that pays for what is done; None outside of a request, and where nobody does."""
    current = _current.get()
    return current.charged_key if current else None


def first_chunk() -> None:
    """A search round is done: of a request, the first is timed."""
    current = _current.get()
    if current is not None and not current.generating:
        current.generating = True
        metrics.FIRST_CHUNK_SECONDS.observe(monotonic() - current.started)
