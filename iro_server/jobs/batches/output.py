"""The answers of a batch while it runs: lines on the disk, of which the batch's row says how many bytes count."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, Self

from iro_server import JsonObject

Kind = Literal["output", "errors"]
KINDS: tuple[Kind, ...] = ("output", "errors")
BLOCK = 2**20


class AttemptOutput:
    """What one holder of the batch adds, in files of its own: one that was thought dead spoils nobody else's.

    ``segments``: for each holder so far its attempt and the bytes of its two files that count.
    """

    def __init__(self, folder: Path, attempt: int, segments: Sequence[list[int]]) -> None:
        self.earlier, self.attempt = [list(segment) for segment in segments], attempt
        self.files: dict[Kind, BinaryIO] = {kind: _path(folder, attempt, kind).open("wb") for kind in KINDS}

    def append(self, kind: Kind, lines: Sequence[JsonObject]) -> None:
        """On the medium once it returns."""
        file = self.files[kind]
        file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())

    @property
    def segments(self) -> list[list[int]]:
        return [*self.earlier, [self.attempt, *(self.files[kind].tell() for kind in KINDS)]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self.files.values():
            file.close()


def stored_blocks(folder: Path, segments: Sequence[list[int]], kind: Kind) -> Iterator[bytes]:
    """The lines of all holders that count, in order."""
    for attempt, *sizes in segments:
        remaining = sizes[KINDS.index(kind)]
        with _path(folder, attempt, kind).open("rb") as file:
            for block in iter(partial(file.read, BLOCK), b""):
                yield block[:remaining]
                remaining -= len(block)
                if remaining <= 0:
                    break


def _path(folder: Path, attempt: int, kind: Kind) -> Path:
    return folder / f"{attempt}.{kind}.jsonl"
