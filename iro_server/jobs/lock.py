"""Who works on a job folder: a file lock, which the kernel lets go of however its holder dies."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from iro_server.jobs.disk import FULL_ERRORS

log = logging.getLogger("iro.jobs")
PATIENCE = 5.0  # seconds: a look at the lock takes it for an instant, and must not turn a worker away


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold ``folder``'s lock, this process's id and machine in it. Gives False where another process keeps it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+b") as file:
        deadline = time.monotonic() + PATIENCE
        while not (held := _try_lock(file)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if held:
            _note_holder(file)
        yield held


def _note_holder(file: BinaryIO) -> None:
    os.truncate(file.fileno(), 0)
    try:
        os.pwrite(file.fileno(), f"{os.getpid()} {socket.gethostname()}".encode(), 0)
    except OSError as error:
        if error.errno not in FULL_ERRORS:
            raise
        log.warning("%s: its holder could not be noted: %s", file.name, error.strerror)


def held(folder: Path) -> bool:
    """Whether a process holds ``folder``'s lock, on this machine or on another that shares the folder."""
    with _look(folder) as file:
        return file is not None and not _try_lock(file, fcntl.LOCK_SH)


def holder(folder: Path) -> int | None:
    """The process id of the worker on ``folder``, None where there is none, the disk was too full to note it, or it is
    another machine's, or container's: here its number is another process's."""
    with _look(folder) as file:
        if file is None or _try_lock(file, fcntl.LOCK_SH):
            return None
        pid, _, machine = os.pread(file.fileno(), 512, 0).decode().partition(" ")
    return int(pid) if pid.isdigit() and machine == socket.gethostname() else None


@contextmanager
def _look(folder: Path) -> Iterator[BinaryIO | None]:
    """The lock's file, None where there is none: a look makes no file in a folder that its owner removes."""
    try:
        file = (folder / "lock").open("r+b")
    except FileNotFoundError:
        yield None
        return
    with file:
        yield file


def _try_lock(file: BinaryIO, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
