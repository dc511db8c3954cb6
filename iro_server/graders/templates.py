"""``{{ item.field }}`` and ``{{ sample.output_text }}`` in grader fields: paths only, nothing is executed."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator

_EXPRESSION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_PATH = re.compile(r"\s*((?:item|sample)(?:\.[\w-]+|\[\d+\])*)\s*")
_STEP = re.compile(r"[^.\[\]]+")


class MissingField(LookupError):
    """A template names a field that the item or the sample does not have."""


def check_template(template: str) -> str:
    """The template itself. Raises ValueError naming the first expression that is not a path."""
    for expression in _EXPRESSION.findall(template):
        if not _PATH.fullmatch(expression):
            raise ValueError(
                f"{{{{{expression}}}}} is not a path such as item.label, sample.output_text or item.a[0].b"
            )
    return template


Template = Annotated[str, AfterValidator(check_template)]


def render(template: str, scope: dict[str, Any]) -> str:
    """Put the values in: strings as they are, anything else as JSON.

    ``scope`` has ``item`` and ``sample``. Raises MissingField.
    """
    return _EXPRESSION.sub(lambda match: _as_text(_lookup(match[1].strip(), scope)), template)


def _lookup(path: str, scope: dict[str, Any]) -> Any:
    value: Any = scope
    walked: list[str] = []
    for step in _STEP.findall(path):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise MissingField(f"{'.'.join(walked)} has no field {step!r} (in {{{{ {path} }}}})") from None
        walked.append(step)
    return value


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
