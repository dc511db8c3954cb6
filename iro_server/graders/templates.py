"""``{{ item.field }}`` and ``{{ sample.output_text }}`` in grader fields: paths only, nothing is executed."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator

from iro_server.graders.base import Flag

_EXPRESSION = re.compile(r"\{\{(.*?)(\}\}|\Z)", re.DOTALL)  # one that is not closed is text, and is read but once
_PATH = re.compile(r"""\s*((?:item|sample)(?:\.[\w-]+|\[(?:[0-9]+|'[^']*'|"[^"]*")\])*)\s*""")
_STEP = re.compile(r"""\.?([\w-]+)|\[(?:'([^']*)'|"([^"]*)")\]|\[([0-9]+)\]""")
_INDEX = re.compile(r"[0-9]{1,9}")


class MissingField(LookupError):
    """A template names a field that the item or the sample does not have. ``flag``: the error it is in OpenAI's API."""

    def __init__(self, message: str, flag: Flag) -> None:
        super().__init__(message)
        self.flag = flag


def check_template(template: str) -> str:
    """The template itself. Raises ValueError naming the first expression that is not a path."""
    for expression, end in _EXPRESSION.findall(template):
        if end and not _PATH.fullmatch(expression):
            raise ValueError(
                f"{{{{{expression}}}}} is not a path such as item.label, sample.output_text, item.a[0].b or item['a b']"
            )
    return template


Template = Annotated[str, AfterValidator(check_template)]


def render(template: str, scope: dict[str, Any]) -> str:
    """Put the values in: strings as they are, anything else as JSON. What is put in is not rendered again.

    ``scope`` has ``item`` and ``sample``. Raises MissingField.
    """
    return _EXPRESSION.sub(lambda match: _as_text(_lookup(match[1].strip(), scope)) if match[2] else match[0], template)


def _lookup(path: str, scope: dict[str, Any]) -> Any:
    steps = ["".join(parts) for parts in _STEP.findall(path)]
    if steps[:2] == ["sample", "output_json"] and scope["sample"]["output_json"] is None:
        raise MissingField(f"the sample is not JSON (in {{{{ {path} }}}})", "sample_parse_error")
    value: Any = scope
    for depth, step in enumerate(steps):
        try:
            value = value[_index(step)] if isinstance(value, list) else value[step]
        except (LookupError, TypeError):
            message = f"{'.'.join(steps[:depth])} has no field {step!r} (in {{{{ {path} }}}})"
            raise MissingField(message, "invalid_variable_error") from None
    return value


def _index(step: str) -> int:
    if not _INDEX.fullmatch(step):
        raise LookupError(step)
    return int(step)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
