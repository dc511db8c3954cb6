"""Files on disk: whole or absent, and on the medium before anyone is told."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, blocks: Iterable[bytes]) -> int:
    """Write ``blocks`` to ``path`` and sync them and their directory; returns the bytes written.

    An exception, from ``blocks`` or the disk, leaves nothing at ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.writelines(blocks)
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)
    return size


def link(source: Path, target: Path) -> None:
    """Give ``source`` a second name, so that it outlives its deletion under the first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source, target)
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
