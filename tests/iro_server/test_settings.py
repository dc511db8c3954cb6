"""What a server's settings refuse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from iro_server.settings import Settings

TIMES = [name for name, field in Settings.model_fields.items() if field.annotation in (float, float | None)]


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", TIMES)
def test_no_time_is_infinite(tmp_path: Path, name: str, value: float) -> None:
    """Workers read the settings as JSON, which has no word for it."""
    with pytest.raises(ValidationError, match=f"{name}\n.*finite number"):
        Settings(data_dir=tmp_path, **{name: value})  # type: ignore[arg-type]
