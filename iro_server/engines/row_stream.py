"""One row of a server, read while it is drawn: one request, however small the parts that a session asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from iro_server import JsonObject
from iro_server.engines.adapter_holds import Adapter
from iro_server.engines.remote import Row
from iro_server.engines.replica import Replica, ReplicaFailure
from iro_server.engines.replicas import Replicas

LINGER = 5.0  # seconds


class RowStream:
    """Up to ``length`` tokens of a row, which ``body`` asks for. Use it from the event loop of ``replicas``.

    ``read``: what an event adds to the row; None: nothing. ``replica``: that draws it, once it has begun.
    """

    def __init__(
        self,
        replicas: Replicas,
        body: JsonObject,
        read: Callable[[JsonObject], Row | None],
        length: int,
        prefer: Replica | None,
        adapter: Adapter | None,
    ) -> None:
        self.body, self.length = body, length
        self.left = length  # that are not taken
        self.replica = prefer
        self._read = read
        self.rest = Row([], [], False)  # that came, and is not taken
        self._events: asyncio.Queue[Row | Exception] = asyncio.Queue()
        self._task = asyncio.create_task(self._draw(replicas, body, prefer, adapter))

    async def _draw(
        self, replicas: Replicas, body: JsonObject, prefer: Replica | None, adapter: Adapter | None
    ) -> None:
        failure: Exception
        try:
            self.replica = await replicas.stream(body, self._add, prefer, adapter)
            failure = ReplicaFailure(f"{self.replica.url} ended a row early")
        except Exception as error:
            failure = error
        self._events.put_nowait(failure)

    def _add(self, event: JsonObject) -> None:
        if row := self._read(event):
            self._events.put_nowait(row)

    async def take(self, length: int | None) -> Row:
        """The next ``length`` tokens, or those until the row stops (None: all). ReplicaFailure where they do not come,
        with those that came in ``rest``."""
        drawn = self.rest
        while (length is None or len(drawn.tokens) < length) and not drawn.stopped:
            event = await self._events.get()
            if isinstance(event, Exception):
                self.rest = drawn
                raise event
            drawn = drawn.continued(event)
        row, self.rest = drawn.split(len(drawn.tokens) if length is None else length)
        self.left -= len(row.tokens)
        return row

    async def end(self) -> None:
        """Once all is taken: with what the server says after the last token, unless it is silent."""
        await asyncio.wait([self._task], timeout=LINGER)

    def close(self) -> None:
        """The server draws no more."""
        self._task.cancel()
