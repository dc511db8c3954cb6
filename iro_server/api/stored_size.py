"""How large the parts of a request are that a row of the database keeps."""

from __future__ import annotations

import json

from iro_server.api.errors import bad_request


def check_stored_size(value: object, param: str, limit: int) -> None:
    """400 where ``value`` takes more than ``limit`` bytes as JSON."""
    size = len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    if size > limit:
        raise bad_request(f"Invalid '{param}': it takes {size} bytes as JSON, over {limit}", param, "value_too_large")
