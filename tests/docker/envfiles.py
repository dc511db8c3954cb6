"""The files that docker/compose.yaml gives its services as their environment."""

from __future__ import annotations

from pathlib import Path


def read(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}
