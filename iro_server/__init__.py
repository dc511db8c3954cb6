"""What a user talks to. The first import of it bounds how long OpenMP's idle threads spin.

``JsonValue`` and ``JsonObject`` are JSON as Python values.
"""

from typing import Any, TypeAlias

from iro_server.concurrency.openmp import limit_spinning

JsonValue: TypeAlias = "str | int | float | bool | list[JsonValue] | dict[str, JsonValue] | None"

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object whose fields its reader knows or checks: a body of the API, a row of a file, a grader."""

limit_spinning()
