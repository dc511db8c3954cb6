"""A bound on how long a client may take to read a part of its answer."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("iro.api")


class ReaderStopped(Exception):
    """The client has not read what was sent to it for too long."""


class SendTimeout:
    """ASGI middleware: gives up an answer of which one part takes over ``seconds`` to send."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def timed(message: Message) -> None:
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except TimeoutError:
                raise ReaderStopped from None

        try:
            await self.app(scope, receive, timed)
        except ReaderStopped:
            log.info("%s %s: the client stopped reading", scope["method"], scope["path"])


class UnreadConnections:
    """Connections that were closed while their client had data to read, for which closing waits: ``reset_old`` resets
    them, once the client has had ``seconds`` more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: dict[asyncio.Transport, float] = {}  # when seen first, monotonic

    def reset_old(self, connections: Iterable[asyncio.Transport]) -> None:
        now = time.monotonic()
        unread = [each for each in connections if each.is_closing() and each.get_write_buffer_size()]
        self._since = {each: self._since.get(each, now) for each in unread}
        for transport, since in self._since.items():
            if now - since > self.seconds:
                _reset(transport)


def _reset(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # the kernel drops it too
    transport.abort()
