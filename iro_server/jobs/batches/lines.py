"""A batch's input: one request a line, each with an id of the caller's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from iro_server import JsonObject


class BadLine(ValueError):
    """The batch cannot run for what ``line``, from 1, holds at ``param``."""

    def __init__(self, message: str, code: str, line: int | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.line, self.param = code, line, param


@dataclass(frozen=True)
class Summary:
    """``model`` None: the requests name several."""

    requests: int
    model: str | None


def read_requests(path: Path, start: int = 0) -> Iterator[JsonObject]:
    """The requests from number ``start`` on."""
    with path.open("rb") as file:
        for line in islice((line for line in file if line.strip()), start, None):
            yield json.loads(line.removeprefix(b"\xef\xbb\xbf"))


def checked(path: Path, endpoint: str, most: int) -> Summary:
    """What the file at ``path`` asks for. BadLine where it is no batch for ``endpoint`` of up to ``most`` requests."""
    custom_ids: set[str] = set()
    models: set[str] = set()
    for line, request in enumerate(read_requests(path), 1):
        if line > most:
            raise BadLine(f"A batch may have {most} requests; split the file.", "too_many_requests", line)
        if request["url"] != endpoint:
            message = f"The url {request['url']} is not the batch's endpoint, {endpoint}."
            raise BadLine(message, "invalid_url", line, "url")
        if request["custom_id"] in custom_ids:
            message = f"The custom_id {request['custom_id'][:100]!r} is used before; each request needs its own."
            raise BadLine(message, "duplicate_custom_id", line, "custom_id")
        if request["body"].get("stream"):
            raise BadLine("A request of a batch cannot stream.", "invalid_value", line, "body.stream")
        custom_ids.add(request["custom_id"])
        models.add(str(request["body"].get("model")))
    return Summary(len(custom_ids), models.pop() if len(models) == 1 else None)
