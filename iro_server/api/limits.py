"""A bound on what one request may send."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: 413 for a body over ``most`` bytes, by its Content-Length or, without one, as it arrives."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            self._check(received)
            return message

        async def checked() -> Message:
            self._check(int(dict(scope["headers"]).get(b"content-length", 0)))
            return await counted()

        await self.app(scope, checked, send)

    def _check(self, size: int) -> None:
        if size > self.most:
            raise HTTPException(413, f"The request's body is over the limit of {self.most} bytes.")
