"""What a result depends on beside its config: packages, the code's revision, and the files that it has read."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel


@dataclass(frozen=True)
class FilesOf:
    """The files that a run reads from the folder that a field names: ``data: Annotated[Path, FilesOf([...])]``."""

    names: Sequence[str]


def versions() -> dict[str, str | None]:
    """What a result depends on beside its config. ``git`` is None outside a checkout."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    packages |= {"iro": importlib.metadata.version("iro-align")}
    return {"python": platform.python_version(), "git": _git_revision(), **packages}


def input_hashes(config: BaseModel) -> dict[str, str]:
    """SHA-256 of every file that a field names, and of those that `FilesOf` lists together.

    A path alone does not tell what a run has read.
    """
    hashes = {}
    for field, info in type(config).model_fields.items():
        path = getattr(config, field)
        if not isinstance(path, Path):
            continue
        listed = [path / name for files in info.metadata if isinstance(files, FilesOf) for name in files.names]
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in listed or [path] if file.is_file()]
        if digests:
            hashes[field] = hashlib.sha256("".join(digests).encode()).hexdigest() if listed else digests[0]
    return hashes


def _git_revision() -> str | None:
    """None where this file is not of the repository around it, as in an environment within a user's repository."""
    try:
        if _git("ls-files", "--error-unmatch", Path(__file__).name).returncode:
            return None
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").stdout.strip() or None
    except FileNotFoundError:
        return None


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
