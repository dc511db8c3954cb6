"""Files on disk: whole or absent, on the medium before anyone is told, and checked when they are read."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple


class Written(NamedTuple):
    bytes: int
    sha256: str


class FileCorrupt(Exception):
    """The bytes on the disk are not those that were stored."""


def write_whole(path: Path, blocks: Iterable[bytes]) -> Written:
    """Write ``blocks`` to ``path`` and sync them and their directory.

    An exception, from ``blocks`` or the disk, leaves nothing at ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    size, digest = 0, hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for block in blocks:
                size += file.write(block)
                digest.update(block)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_directory(path.parent)
    return Written(size, digest.hexdigest())


def verified(path: Path, sha256: str | None) -> BinaryIO:
    """``path``, open at its start, once its bytes are known to have the hash (None: none was noted).

    FileCorrupt where they have another; FileNotFoundError.
    """
    file = path.open("rb")
    if sha256 is not None and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
        file.close()
        raise FileCorrupt(f"{path.name} is not what was stored")
    file.seek(0)
    return file


def joined(paths: Iterable[Path]) -> BinaryIO:
    """The files at ``paths`` read one after the other as if they were one."""
    return io.BufferedReader(_Joined(paths))


class _Joined(io.RawIOBase):
    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = iter(paths)
        self.file: BinaryIO = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not (data := self.file.read(len(buffer))):
            if (path := next(self.paths, None)) is None:
                return 0
            self.file.close()
            self.file = path.open("rb")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


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
