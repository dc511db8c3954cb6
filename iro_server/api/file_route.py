"""How routes that take files receive them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine

from fastapi import Request, Response
from fastapi.routing import APIRoute

from iro_server.api.errors import APIError

FULL = (errno.ENOSPC, errno.EDQUOT)


class FileRoute(APIRoute):
    """A form brings one file, of which all but the first megabyte waits on the disk. 507 where the disk is full."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, None, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                if request.headers.get("content-type", "").startswith("multipart/"):
                    await request.form(max_files=1, max_fields=16)  # FastAPI, which sets no limits, finds it read
                return await answer(request)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise APIError(507, "The server's disk is full; nothing was stored.", code="storage_full") from error

        return handle
