"""Who works on a job folder: a file lock, which the kernel lets go of however its holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 5.0  # seconds: a look at the lock takes it for an instant, and must not turn a worker away


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold ``folder``'s lock, this process's id in it. Gives False where another process keeps it."""
    with _open(folder) as file:
        deadline = time.monotonic() + PATIENCE
        while not (held := _try_lock(file)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if held:
            os.truncate(file.fileno(), 0)
            os.pwrite(file.fileno(), str(os.getpid()).encode(), 0)
        yield held


def holder(folder: Path) -> int | None:
    """The process id of the worker on ``folder``, None where there is none."""
    with _open(folder) as file:
        if _try_lock(file):
            return None
        return int(os.pread(file.fileno(), 32, 0) or 0) or None


def _open(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "lock").open("a+b")


def _try_lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
