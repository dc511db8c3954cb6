"""One row of a vLLM server, read while it is drawn: one request, however small the parts that a session asks for."""

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
        self._drawn = Row([], [], False)  # and not taken
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

    async def take(self, length: int) -> Row:
        """The next ``length`` tokens, or those until the row stops. ReplicaFailure where they do not come."""
        drawn = self._drawn
        while len(drawn.tokens) < length and not drawn.stopped:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            drawn = drawn.continued(event)
        self.left -= length
        row, self._drawn = drawn.split(length)
        return row

    async def end(self) -> None:
        """Once all is taken: with what the server says after the last token, unless it is silent."""
        await asyncio.wait([self._task], timeout=LINGER)

    def close(self) -> None:
        """The server draws no more."""
        self._task.cancel()
