"""Connections without a request under way: how long, and how many, so that file descriptors are left for others."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import time
from collections.abc import Collection, Iterable
from typing import Any

log = logging.getLogger("iro.api")
HEADER_SECONDS = 30.0  # for the header of a request to arrive
MAX_DESCRIPTORS = 65_536  # of this process; a larger limit of the host makes no difference
EXHAUSTED = (errno.EMFILE, errno.ENFILE)
LOG_EVERY = 60.0  # seconds between two lines about exhausted descriptors


def raise_descriptor_limit() -> int:
    """Raise the limit of open file descriptors as far as the host allows, up to ``MAX_DESCRIPTORS``. Returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        return allowed
    return soft if soft != resource.RLIM_INFINITY else MAX_DESCRIPTORS


def max_idle_connections() -> int:
    """Half of the descriptors that this process may open: the rest is for requests, files and the database."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS // 2 if soft == resource.RLIM_INFINITY else min(soft, MAX_DESCRIPTORS) // 2


class IdleConnections:
    """Closes connections of uvicorn's protocols that have no request under way: ``close_old`` those whose next request
    has sent no complete header for ``HEADER_SECONDS``, and the oldest of those over ``limit``.

    A connection that sends nothing after its answer is closed by uvicorn, after its ``timeout_keep_alive``.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._since: dict[Any, tuple[object, float]] = {}  # the last request, and when first seen idle, monotonic

    def close_old(self, connections: Collection[Any]) -> None:
        now = time.monotonic()
        idle = {}
        for connection in filter(_is_idle, connections):
            last_request, since = self._since.get(connection, (connection.cycle, now))
            idle[connection] = (last_request, since) if last_request is connection.cycle else (connection.cycle, now)
        self._since = idle
        late = [each for each, (_, since) in idle.items() if _awaits_header(each) and now - since > HEADER_SECONDS]
        _close(late)
        if (surplus := len(idle) - len(late) - self.limit) > 0:
            others = idle.keys() - set(late)
            _close(sorted(others, key=lambda each: idle[each][1])[:surplus])


def _is_idle(connection: Any) -> bool:
    if not hasattr(connection, "cycle"):  # no HTTP: a web socket, where a library for them is installed
        return False
    answered = connection.cycle is None or connection.cycle.response_complete
    return answered and not connection.transport.is_closing()


def _awaits_header(connection: Any) -> bool:
    """Whether a request has begun, or the first one has not: uvicorn's time-out of an idle connection does not run."""
    return connection.timeout_keep_alive_task is None


def _close(connections: Iterable[Any]) -> None:
    for connection in connections:
        connection.transport.close()


class AcceptErrors:
    """An exception handler for an event loop: where no file descriptor is free, asyncio reports thousands of errors a
    second; one line in ``LOG_EVERY`` seconds is logged."""

    def __init__(self) -> None:
        self._logged: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in EXHAUSTED:
            return loop.default_exception_handler(context)
        now = time.monotonic()
        if self._logged is None or now - self._logged > LOG_EVERY:
            self._logged = now
            log.error("no file descriptor is free, and new connections wait: raise the limit (ulimit -n): %s", error)
