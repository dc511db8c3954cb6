"""Sessions over HTTP whose single row, where it is asked for in parts, is one streamed request."""

from __future__ import annotations

from iro_server import JsonObject
from iro_server.engines.remote import Prefix, RemoteSession, Row, derive
from iro_server.engines.row_stream import RowStream

UNSTREAMED_TOKENS = 8  # of a request for the parts of a row that no stream brings


class StreamingSession(RemoteSession[Prefix]):
    """``_stream``: of the row, while it streams."""

    _stream: RowStream | None = None

    def read_event(self, event: JsonObject) -> Row | None:
        """What an event of the stream adds to the row; None: nothing. Errors as of ``read``."""
        raise NotImplementedError

    def keep_row(self, parent: int) -> None:
        """This row is the session's only one."""
        if len(self.prefixes) > 1:
            self.prefixes = [self.prefixes[parent]]
            self.follow([parent], [[]])

    def stream_request(self, length: int, seed: int) -> JsonObject:
        """The body that asks for a stream of ``length`` tokens."""
        return self.request(0, 1, length, seed)

    def _begin_stream(self, length: int) -> RowStream:
        body = self.stream_request(length, derive(self.seed, self.round, 0))
        self.round += 1
        return RowStream(self.engine.replicas, body, self.read_event, length, self.replica, self.adapter)

    async def _draw_unstreamed(self, length: int) -> Row:
        """The next tokens of the row, ``length`` at most, where nothing streams: of a request for several parts."""
        (row,) = await super()._draw([0], 1, min(length, UNSTREAMED_TOKENS))
        return row

    async def _end_stream(self, stream: RowStream) -> None:
        """Once all of it is taken."""
        await stream.end()
        self.replica, self._stream = stream.replica, None

    def close(self) -> None:
        super().close()
        self.engine.call(self._close_stream)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
