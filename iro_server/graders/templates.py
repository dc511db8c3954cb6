"""``{{ item.field }}`` and ``{{ sample.output_text }}`` in grader fields: paths only, nothing is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator

from iro_server import JsonObject
from iro_server.graders.base import Flag, Sample, TextTooLong, check_length

_EXPRESSION = re.compile(r"\{\{(.*?)(\}\}|\Z)", re.DOTALL)  # one that is not closed is read but once
_UNCLOSED = re.compile(r"\s*(item|sample)\b")
_ONE_BRACE = re.compile(r"(?<!\{)\{\s*(?:item|sample)\.[\w.]+\s*\}(?!\})")
_OF_SAMPLE = tuple(field.name for field in fields(Sample))
_PATH = re.compile(r"""\s*((?:item|sample)(?:\.[\w-]+|\[(?:[0-9]+|'[^']*'|"[^"]*")\])*)\s*""")
_STEP = re.compile(r"""\.?([\w-]+)|\[(?:'([^']*)'|"([^"]*)")\]|\[([0-9]+)\]""")
LONGEST_QUOTE = 100  # characters of a template in an error
_INDEX = re.compile(r"[0-9]{1,9}")


class MissingField(LookupError):
    """A template names a field that the item or the sample does not have, or that is nested too deeply. ``flag``: the
    error it is in OpenAI's API."""

    def __init__(self, message: str, flag: Flag) -> None:
        super().__init__(message)
        self.flag = flag


def check_template(template: str) -> str:
    """The template itself. Raises ValueError naming the first expression that is not a path, or is meant as one."""
    for expression, end in _EXPRESSION.findall(template):
        if end:
            _check_path(expression)
        elif _UNCLOSED.match(expression):
            raise ValueError(f"{{{{{expression[:40]} is not closed by }}}}")
    if meant := _ONE_BRACE.search(template):
        path = _short(meant[0].strip("{}"))
        raise ValueError(f"{{{path}}} is written with two braces on each side: {{{{{path}}}}}")
    return template


def _check_path(expression: str) -> None:
    if not _PATH.fullmatch(expression):
        example = "item.label, sample.output_text, item.a[0].b or item['a b']"
        raise ValueError(f"{{{{{_short(expression)}}}}} is not a path such as {example}")
    root, field, *_ = [*_steps(expression), ""]
    if root == "sample" and field not in _OF_SAMPLE:
        raise ValueError(f"{{{{{_short(expression)}}}}} is none of a sample's fields: {', '.join(_OF_SAMPLE)}")


def item_fields(template: str) -> set[str]:
    """The item's fields that the template reads, each by its first step."""
    paths = [_steps(expression) for expression, end in _EXPRESSION.findall(template) if end]
    return {path[1] for path in paths if path[0] == "item" and len(path) > 1}


def reads_sample(template: str) -> bool:
    return any(_steps(expression)[0] == "sample" for expression, end in _EXPRESSION.findall(template) if end)


Template = Annotated[str, AfterValidator(check_template)]


def render(template: str, scope: JsonObject, limit: int | None = None) -> str:
    """Put the values in: strings as they are, anything else as JSON. What is put in is not rendered again.

    ``scope`` has ``item`` and ``sample``. Raises MissingField, and TextTooLong once there are over ``limit`` bytes.
    """
    pieces, remaining = [], limit
    for piece in _pieces(template, scope):
        pieces.append(piece)
        if limit is not None and remaining is not None:
            remaining -= check_length(piece, limit)
            if remaining < 0:
                raise TextTooLong(limit)
    return "".join(pieces)


def _pieces(template: str, scope: JsonObject) -> Iterator[str]:
    """The text between expressions and their values, in order."""
    end = 0
    for match in _EXPRESSION.finditer(template):
        yield template[end : match.start()]
        yield _value_text(match[1].strip(), scope) if match[2] else match[0]
        end = match.end()
    yield template[end:]


def _lookup(path: str, scope: JsonObject) -> Any:
    steps = _steps(path)
    if steps[:2] == ["sample", "output_json"] and scope["sample"].get("output_json", "") is None:
        raise MissingField(f"the sample is not JSON (in {{{{ {_short(path)} }}}})", "sample_parse_error")
    value: Any = scope
    for depth, step in enumerate(steps):
        try:
            value = value[_index(step)] if isinstance(value, list) else value[step]
        except (LookupError, TypeError):
            parent = _short(".".join(steps[:depth]))
            message = f"{parent} has no field {_short(step)!r} (in {{{{ {_short(path)} }}}})"
            raise MissingField(message, "invalid_variable_error") from None
    return value


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"


def _steps(path: str) -> list[str]:
    return ["".join(parts) for parts in _STEP.findall(path)]


def _index(step: str) -> int:
    if not _INDEX.fullmatch(step):
        raise LookupError(step)
    return int(step)


def _value_text(path: str, scope: JsonObject) -> str:
    value = _lookup(path, scope)
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        message = f"the value is nested too deeply (in {{{{ {_short(path)} }}}})"
        raise MissingField(message, "sample_parse_error") from None
