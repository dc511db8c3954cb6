"""The scripts in docs/moving-from-openai.md."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "moving-from-openai.md"
ADDRESS, MODEL = "http://127.0.0.1:8000/v1", "SmolLM2-135M-Instruct"


def code(language: str, address: str, model: str = MODEL) -> str:
    """The one script in ``language``, for the server at ``address`` and its base model."""
    (script,) = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert script.count(ADDRESS) == script.count(MODEL) == 1
    return script.replace(ADDRESS, address).replace(MODEL, model)
