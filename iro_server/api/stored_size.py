"""What a value may be that a row of the database keeps: how large, and of finite numbers."""

from __future__ import annotations

import json

from iro_server.api.errors import bad_request


def json_bytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def check_stored_size(value: object, param: str, limit: int) -> None:
    """400 where ``value`` takes more than ``limit`` bytes as JSON, or holds a number that is not finite."""
    check_finite(value, param)
    size = json_bytes(value)
    if size > limit:
        raise bad_request(f"Invalid '{param}': it takes {size} bytes as JSON, over {limit}", param, "value_too_large")


def check_finite(value: object, param: str) -> None:
    """400 where ``value`` holds a number that JSON cannot write, such as 1e999, which is read as infinity."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise bad_request(f"Invalid '{param}': it holds a number that is not finite", param) from error
    except RecursionError as error:  # from deeper in the stack than where it was read
        raise bad_request(f"Invalid '{param}': it is nested too deep", param) from error
