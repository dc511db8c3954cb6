"""Training rows: what an uploaded line must hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from iro_server.api.errors import APIError, bad_request


class RowMessage(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class Row(BaseModel):
    """``messages``, a conversation to answer, or ``prompt``, a text to continue; any other field is the grader's."""

    model_config = ConfigDict(extra="allow")

    messages: list[RowMessage] | None = Field(None, min_length=1)
    prompt: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_prompt(self) -> Row:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("a row has either 'messages' or 'prompt'")
        return self


def checked_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Pass ``lines`` on as they are. 400, with its number, for the first that is no training row, or without any."""
    rows = blank = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            blank = blank or number
        elif blank:
            raise _at(blank, "is blank")
        else:
            _check(number, line)
            rows += 1
        yield line
    if rows == 0:
        raise bad_request("The file is empty: it has no training rows.", "file", "invalid_file")


def _check(number: int, line: bytes) -> None:
    try:
        row: Any = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        raise _at(number, f"is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise _at(number, "is not a JSON object")
    try:
        Row.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise _at(number, f"is not a training row: {f'{where}: ' if where else ''}{message}") from None


def _at(number: int, what: str) -> APIError:
    return bad_request(f"Invalid file: line {number} {what}.", "file", "invalid_file")
