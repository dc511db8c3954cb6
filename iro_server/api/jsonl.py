"""Training rows, the items of evals, the requests of batches: what an uploaded line must hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from iro_server import JsonObject
from iro_server.api.errors import APIError, bad_request
from iro_server.api.messages import Message, Tool
from iro_server.api.tool_results import mismatch
from iro_server.store.row_files import SAVE_AS_UTF_8

MAX_LINE = 8 * 2**20  # bytes of one row, which is read as a whole
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
PLACE = re.compile(r"at line \d+ column (\d+)")
JSON_LINES = "the file holds one JSON object a line (JSON Lines)"
FIELDS_SHOWN, MOST_SHOWN = 5, 200  # names, and characters of them, of a row that is none


class RowMessage(Message):
    """A message of a chat request; a row may hold further fields, which nothing reads."""

    model_config = ConfigDict(extra="allow")


class Row(BaseModel):
    """``messages``, a conversation to answer with ``tools``, or ``prompt``, a text to continue; any other field is the
    grader's."""

    model_config = ConfigDict(extra="allow")

    messages: list[RowMessage] = Field(default=[], min_length=1)
    prompt: str = Field("", min_length=1)
    tools: list[Tool] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Row:
        if self.messages and self.prompt:
            raise ValueError("a row has either 'messages' or 'prompt', and this one both")
        if not self.messages and not self.prompt:
            fields = ", ".join(map(repr, list(self.model_extra or ())[:FIELDS_SHOWN]))[:MOST_SHOWN] or "no field"
            raise ValueError(f"a row has either 'messages' or 'prompt'; this one has {fields}")
        if self.messages and self.messages[-1].role not in ("user", "tool"):
            raise ValueError("the last of 'messages' must have the role 'user' or 'tool': the model writes the answer")
        if problem := mismatch(self.messages):
            raise ValueError(f"messages.{problem[0]}: {problem[1]}")
        return self


class EvalRow(BaseModel):
    """An item of an eval and, where a model has answered already, its sample."""

    model_config = ConfigDict(extra="allow")

    item: JsonObject
    sample: JsonObject | None = None


BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]


class BatchLine(BaseModel):
    """A request of a batch."""

    model_config = ConfigDict(extra="forbid")

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: BatchEndpoint
    body: JsonObject


KINDS: dict[str, tuple[type[BaseModel], str]] = {
    "fine-tune": (Row, "a training row"),
    "evals": (EvalRow, "an eval item"),
    "batch": (BatchLine, "a request of a batch"),
}
"""By a file's purpose: what its lines hold."""


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of ``file``, the start alone of one that is too long."""
    return iter(partial(file.readline, MAX_LINE + 1), b"")


def checked_lines(lines: Iterable[bytes], purpose: str = "fine-tune", unit: str = "line") -> Iterator[bytes]:
    """Pass ``lines`` on as they are. 400, with its number, for the first that is no row of the ``purpose``, or without
    any.

    ``unit``: what a line is in the file that was sent.
    """
    rows = blank = 0
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE:
            raise _invalid(unit, number, f"is longer than {MAX_LINE} bytes")
        if not line.strip():
            blank = blank or number
        elif blank:
            raise _invalid(unit, blank, "is blank")
        else:
            _check(unit, number, line, purpose)
            rows += 1
        yield line
    if rows == 0:
        raise bad_request("The file is empty: it has no rows.", "file", "invalid_file")


def _check(unit: str, number: int, line: bytes, purpose: str) -> None:
    kind, noun = KINDS[purpose]
    text = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).rstrip(b"\r\n")
    try:
        row = from_json(text, allow_inf_nan=False)
        json.dumps(row, allow_nan=False)  # 1e999 is JSON, but no number that a grader could be handed
    except ValueError as error:
        raise _invalid(unit, number, _json_problem(text, number, error)) from None
    if not isinstance(row, dict):
        raise _invalid(unit, number, f"is not a JSON object{f'; {JSON_LINES}' if isinstance(row, list) else ''}")
    try:
        kind.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        message = f"{f'{where}: ' if where else ''}{message}"
        raise _invalid(unit, number, f"is not {noun}: {message}") from None


def _json_problem(text: bytes, number: int, error: ValueError) -> str:
    """What is wrong with a line that is not JSON."""
    try:
        text.decode()
    except UnicodeDecodeError:
        encoding = " (it looks like UTF-16)" if text.startswith(UTF_16_MARKS) else ""
        return f"is not UTF-8{encoding}: {SAVE_AS_UTF_8}"
    reason = PLACE.sub(r"at column \1", str(error))
    is_begun = number == 1 and text[:1] in (b"[", b"{") and reason.startswith("EOF while parsing")
    return f"is not valid JSON: {reason}{f'; {JSON_LINES}' if is_begun else ''}"


def _invalid(unit: str, number: int, problem: str) -> APIError:
    return bad_request(f"Invalid file: {unit} {number} {problem}.", "file", "invalid_file")
