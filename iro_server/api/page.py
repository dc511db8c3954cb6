"""The page at ``/`` and its assets: files that ``iro_server/web`` was built to, the same for every caller."""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from iro_server.settings import Settings

ROOT, ASSETS = "/", "/assets/"
BUILT = Path(__file__).parents[1] / "web" / "built"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
REVALIDATED = {"Cache-Control": "no-cache"}
IMMUTABLE = {"Cache-Control": "public, max-age=31536000, immutable"}  # a file's name has the hash of its content

router = APIRouter(include_in_schema=False)


def is_page(path: str) -> bool:
    """Whether ``path`` is the page's or an asset's, which hold nothing of anyone and need no key."""
    return path == ROOT or path.startswith(ASSETS)


@router.api_route(ROOT, methods=["GET", "HEAD"])
async def page() -> FileResponse:
    return FileResponse(BUILT / "index.html", headers=HEADERS | REVALIDATED)


class Assets(StaticFiles):
    """Files under names that change with their content; no folder is listed."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(HEADERS | IMMUTABLE)
        return response


def address(settings: Settings) -> str:
    """The page's URL, as this machine reaches it."""
    return settings.own_url.removesuffix("/v1") + ROOT


def install(app: FastAPI) -> None:
    """Serve the page and its assets, which the API document leaves out."""
    app.include_router(router)
    app.mount(ASSETS.rstrip("/"), Assets(directory=BUILT / "assets"))
