"""Calls of a running server, for the commands that need one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from iro_server import JsonObject, JsonValue
from iro_server.engines.endpoints import checked_key

if TYPE_CHECKING:
    import httpx

NO_KEY = "none"
SERVER = "http://127.0.0.1:8000/v1"
RECONNECT, LONGEST_PAUSE = 1.0, 600.0  # seconds
LONGEST_RESTART = 120.0  # seconds that a server which has answered before may not be reached
UNAVAILABLE = (429, 502, 503, 504)  # statuses of a server that may answer soon
Url = Annotated[str, typer.Option("--url", envvar="IRO_URL", help="The server's address.")]
Key = Annotated[str, typer.Option("--key", envvar="IRO_KEY", help="An API key of the server, where it requires one.")]


@contextmanager
def server_client(url: str, key: str) -> Iterator[httpx.Client]:
    """Calls of the server; ``url`` with or without its path. ValueError where that is none, or for a ``key`` that no
    header takes; OSError where the server cannot be reached."""
    import httpx

    key = checked_key(key, "--key or IRO_KEY") or NO_KEY
    try:
        base = httpx.URL(url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise ValueError(f"--url {url}: {error}") from None
    if base.path in ("", "/"):
        base = base.copy_with(path="/v1")
    with httpx.Client(base_url=base, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        try:
            yield client
        except httpx.TransportError as error:
            raise OSError(f"{url} cannot be reached ({error}); start a server or name it with --url") from None


def path_part(id: str, advice: str) -> str:
    """``id`` as a part of a path, without spaces and line ends around it. ValueError with ``advice`` where it is
    empty."""
    if not id.strip():
        raise ValueError(advice)
    return quote(id.strip(), safe="")


def upload(server: httpx.Client, path: Path, purpose: str) -> str:
    """The id of the file once it is stored."""
    with path.open("rb") as content:
        response = server.post("/files", files={"file": (path.name, content)}, data={"purpose": purpose})
    return str(_read(response)["id"])


def post(server: httpx.Client, path: str, body: JsonObject) -> JsonObject:
    """The answer. ValueError with what the server says where it refuses."""
    return _read(server.post(path, json=body))


def get(server: httpx.Client, path: str, **query: str | int) -> JsonObject:
    """The answer. ValueError with what the server says where it refuses."""
    return _read(server.get(path, params=query))


def get_when_available(server: httpx.Client, path: str) -> JsonObject:
    """The answer, once a server that has answered before is available. ValueError with what the server says where it
    refuses, TransportError where it cannot be reached for longer than a restart takes."""
    import httpx

    unreachable_since: float | None = None
    while True:
        pause = RECONNECT
        try:
            response = server.get(path)
        except httpx.TransportError as error:
            now = time.monotonic()
            if unreachable_since is None:
                unreachable_since = now
                typer.echo(f"The server cannot be reached ({error}); trying for {LONGEST_RESTART:.0f} s.", err=True)
            elif now - unreachable_since > LONGEST_RESTART:
                raise
        else:
            if response.status_code not in UNAVAILABLE:
                return _read(response)
            unreachable_since, pause = None, retry_pause(response)
        time.sleep(pause)


def retry_pause(response: httpx.Response) -> float:
    """Seconds until the request may be sent again, by ``Retry-After`` where the server says them. ValueError with what
    the server says where it would refuse the request again."""
    if response.status_code not in UNAVAILABLE:
        raise ValueError(refusal(response))
    try:
        pause = min(max(RECONNECT, float(response.headers["retry-after"])), LONGEST_PAUSE)
    except (KeyError, ValueError):  # none, or a date
        pause = RECONNECT
    typer.echo(f"The server answers with status {response.status_code}; trying again in {pause:.0f} s.", err=True)
    return pause


def refusal(response: httpx.Response) -> str:
    """What the server says where it refuses."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return _not_of_the_api(response)


def _read(response: httpx.Response) -> JsonObject:
    if response.status_code == 401 and response.request.headers["authorization"] == f"Bearer {NO_KEY}":
        raise ValueError("The server requires an API key: give it by --key or IRO_KEY.")
    if response.status_code >= 400:
        raise ValueError(refusal(response))
    try:
        body: JsonValue = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ValueError(_not_of_the_api(response))
    return body


def _not_of_the_api(response: httpx.Response) -> str:
    return f"{response.url} answers with status {response.status_code} and no JSON of this API; name a server by --url"
