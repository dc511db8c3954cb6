"""A bound on how long a client may take to send a part of its request."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

RECEIVE_SECONDS = 60.0  # for the next part of a body to arrive


class ReceiveTimeout:
    """ASGI middleware: 408, and the connection ends, where no byte of a body comes for ``RECEIVE_SECONDS``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        complete = False

        async def timed() -> Message:
            nonlocal complete
            if complete:  # what comes now is the client's departure
                return await receive()
            try:
                async with asyncio.timeout(RECEIVE_SECONDS):
                    message = await receive()
            except TimeoutError:
                detail = f"No part of the request's body came for {RECEIVE_SECONDS:g} seconds."
                raise HTTPException(408, detail, headers={"connection": "close"}) from None
            complete = not message.get("more_body", False)
            return message

        await self.app(scope, timed, send)
