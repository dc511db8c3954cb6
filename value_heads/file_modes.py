"""Who may read what is written: safetensors makes its files readable by their owner alone, whatever the umask."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from stat import S_IMODE


def give_mode_of(other: Path, files: Iterable[Path]) -> None:
    """Make ``files`` readable by whoever may read ``other``, which was written as usual."""
    for file in files:
        file.chmod(S_IMODE(other.stat().st_mode))
