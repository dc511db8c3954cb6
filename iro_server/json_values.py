"""JSON as Python values."""

from __future__ import annotations

from typing import Any, TypeAlias

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object whose fields its reader knows or checks: a body of the API, a row of a file, a grader."""
