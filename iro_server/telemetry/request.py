"""The request that is being answered, known to all that is done for it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import monotonic

from iro_server.telemetry import metrics


@dataclass
class Current:
    id: str
    started: float = field(default_factory=monotonic)
    generating: bool = False  # some of its text is there


_current: ContextVar[Current | None] = ContextVar("request", default=None)
set_current = _current.set  # never taken back: the task that answers a request ends with it


def request_id() -> str | None:
    """None outside of a request."""
    current = _current.get()
    return current.id if current else None


def first_chunk() -> None:
    """A search round is done: of a request, the first is timed."""
    current = _current.get()
    if current is not None and not current.generating:
        current.generating = True
        metrics.FIRST_CHUNK_SECONDS.observe(monotonic() - current.started)
