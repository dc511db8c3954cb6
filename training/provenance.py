"""What a result depends on beside its config: packages, the code's revision, and the files that it has read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from pydantic import BaseModel


def versions() -> dict[str, str | None]:
    """What a result depends on beside its config. ``git`` is None outside a checkout."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    packages |= {"iro": importlib.metadata.version("iro-align")}
    return {"python": platform.python_version(), "git": _git_revision(), **packages}


def input_hashes(config: BaseModel) -> dict[str, str]:
    """SHA-256 of every file that a field names: a path alone does not tell what a run has read."""
    files = {name: value for name, value in config if isinstance(value, Path) and value.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
