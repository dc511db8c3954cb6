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
        self._failure: Exception | None = None
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._draw(replicas, body, prefer, adapter))

    async def _draw(
        self, replicas: Replicas, body: JsonObject, prefer: Replica | None, adapter: Adapter | None
    ) -> None:
        try:
            self.replica = await replicas.stream(body, self._add, prefer, adapter)
            self._failure = ReplicaFailure(f"{self.replica.url} ended a row early")
        except Exception as error:
            self._failure = error
        self._news.set()

    def _add(self, event: JsonObject) -> None:
        if row := self._read(event):
            self.rest = self.rest.continued(row)
            self._news.set()

    async def take(self, least: int, most: int) -> Row:
        """The next ``least`` tokens, with those up to ``most`` that have come too, or fewer where the row stops.
        ReplicaFailure where they do not come, with those that came in ``rest``."""
        while len(self.rest.tokens) < least and not self.rest.stopped:
            if self._failure:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        row, self.rest = self.rest.split(most)
        self.left -= len(row.tokens)
        return row

    async def end(self) -> None:
        """Once all is taken: with what the server says after the last token, unless it is silent."""
        await asyncio.wait([self._task], timeout=LINGER)

    def close(self) -> None:
        """The server draws no more."""
        self._task.cancel()
