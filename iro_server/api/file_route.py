"""How routes that take files receive them."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from iro_server.api.context import Context
from iro_server.api.errors import APIError
from iro_server.api.quotas import check_file

FULL = (errno.ENOSPC, errno.EDQUOT)
FORM_BYTES = 2**16  # of a form beside its file, at most

arriving_bytes: Counter[str] = Counter()  # by project, of the files that are being received


class FileRoute(APIRoute):
    """A form brings one file, of which all but the first megabyte waits on the disk. 507 where the disk is full; 429,
    before a file is received, where its project has no room for it beside those that are being received. Projects take
    turns to have files stored and joined."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, None, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                if request.headers.get("content-type", "").startswith("multipart/"):
                    await self._receive_form(request)
                if request.method != "POST":
                    return await answer(request)
                async with request.app.state.file_slots.slot(request.state.caller.project):
                    return await answer(request)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise APIError(507, "The server's disk is full; nothing was stored.", code="storage_full") from error

        return handle

    async def _receive_form(self, request: Request) -> None:
        """Read the form within limits: FastAPI, which sets none, finds it read."""
        if not self.path.endswith("/files"):  # an upload has announced the bytes of its parts
            await request.form(max_files=1, max_fields=16)
            return
        context = replace(request.app.state.context, caller=request.state.caller)
        project, size = context.caller.project, _file_bytes(request, context)
        with _arriving(project, size):
            if size:
                await run_in_threadpool(_check_room, context, "content-length" in request.headers)
            await request.form(max_files=1, max_fields=16)


def _check_room(context: Context, has_length: bool) -> None:
    """Refuse a file that the project has no room for beside those that arrive: 429, 411 without a length."""
    try:
        check_file(context, arriving_bytes[context.caller.project])
    except APIError as error:
        if has_length:
            raise
        message = "A request without Content-Length counts as the largest that is taken, and there is no room for it"
        raise APIError(411, f"{message}: send its Content-Length.", code="length_required") from error


def _file_bytes(request: Request, context: Context) -> int:
    """About how many bytes the form's file has, by Content-Length; without one, as many as a form may have."""
    length = int(request.headers.get("content-length", context.settings.max_body_bytes))
    return max(0, length - FORM_BYTES)


@contextmanager
def _arriving(project: str, size: int) -> Iterator[None]:
    arriving_bytes[project] += size
    try:
        yield
    finally:
        arriving_bytes[project] -= size
        if not arriving_bytes[project]:
            del arriving_bytes[project]
