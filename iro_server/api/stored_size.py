"""How large a value is that a row of the database keeps."""

from __future__ import annotations

import json

from iro_server.api.errors import bad_request


def json_bytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def check_stored_size(value: object, param: str, limit: int) -> None:
    """400 where ``value`` takes more than ``limit`` bytes as JSON."""
    size = json_bytes(value)
    if size > limit:
        raise bad_request(f"Invalid '{param}': it takes {size} bytes as JSON, over {limit}", param, "value_too_large")
