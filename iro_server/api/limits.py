"""Bounds on what one request may send."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOADS = re.compile(r"/v1/(files|uploads/[^/]+/parts)/?")  # paths of routes that take a file as a form
REFUSAL_DELAY = 0.5  # seconds
SEPARATORS = (b",", b"[", b"{")  # each value of a JSON document comes after one of them, the outermost apart


@dataclass(frozen=True)
class BodyLimits:
    """``upload``: bytes of a form with a file. ``json``: bytes of any other body; ``values``: JSON values in it."""

    upload: int
    json: int
    values: int


class BodyLimit:
    """ASGI middleware: 413 for a body over its limits, by its Content-Length or as it arrives, before it is parsed.

    Values are counted by commas and opening brackets, those in strings included: validation, which runs on the event
    loop, takes 5 µs for a wrong one. The 413 is sent after ``REFUSAL_DELAY``, in which nothing more is read: a client
    that sends such bodies in a loop takes little of the event loop from others.
    """

    def __init__(self, app: ASGIApp, limits: BodyLimits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        form = headers.get(b"content-type", b"").startswith(b"multipart/")
        body = _Body(self.limits, upload=form and bool(UPLOADS.fullmatch(scope["path"])))

        async def checked() -> Message:
            try:
                body.check_size(int(headers.get(b"content-length", 0)))
                message = await receive()
                body.count(message.get("body", b""))
            except HTTPException:
                await asyncio.sleep(REFUSAL_DELAY)
                raise
            return message

        await self.app(scope, checked, send)


class _Body:
    """What has arrived of one request's body."""

    def __init__(self, limits: BodyLimits, upload: bool) -> None:
        self.most_bytes = limits.upload if upload else limits.json
        self.most_values = None if upload else limits.values
        self.size = self.values = 0

    def check_size(self, size: int) -> None:
        """Raise HTTPException 413 where a body of ``size`` bytes is too large."""
        if size > self.most_bytes:
            raise HTTPException(413, f"The request's body is over the limit of {self.most_bytes} bytes.")

    def count(self, part: bytes) -> None:
        """Raise HTTPException 413 where ``part`` makes the body too large."""
        self.size += len(part)
        self.check_size(self.size)
        if self.most_values is not None:
            self.values += sum(map(part.count, SEPARATORS))
            if self.values > self.most_values:
                raise HTTPException(413, f"The request's body holds more than {self.most_values} commas and brackets.")
