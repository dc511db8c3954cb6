"""A static interactive page: precomputed curves, and sliders that select among them, without server or library."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Curve = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One plot. ``sliders``: name → values; ``frames``: slider indices joined by commas → curves.

    A curve is {"name", "x", "y"} with optional "low", "high" (a band) and "dots": true (unconnected readings).
    """

    id: str
    title: str
    x: str
    y: str
    sliders: Mapping[str, Sequence[float | str]]
    frames: Mapping[str, list[Curve]]
    log_x: bool = False
    log_y: bool = False
    note: str = field(default="")


def write_page(path: Path, title: str, intro: str, panels: list[Panel]) -> None:
    """Write one HTML file that holds its data; ``#id.slider=index`` in its address sets a slider."""
    data = json.dumps([_rounded(asdict(panel)) for panel in panels], separators=(",", ":")).replace("</", "<\\/")
    template = (Path(__file__).parent / "page.html").read_text()
    path.write_text(template.replace("%TITLE%", title).replace("%INTRO%", intro).replace("%DATA%", data))


def _rounded(value: Any) -> Any:
    """``value`` with its numbers rounded to four significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
