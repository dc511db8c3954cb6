"""Which servers live: each holds a lock of its own in the data directory, which the kernel frees however it dies."""

from __future__ import annotations

import contextlib
import glob
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from iro_server.jobs import lock

TAKES_JOBS = "takes-jobs-"  # in the name of such a server
STARTING = 60.0  # seconds that a server may take from its folder to its lock


def _folder(data_dir: Path, server: str) -> Path:
    return data_dir / "servers" / server


@contextlib.contextmanager
def present(data_dir: Path, takes_jobs: bool = True) -> Iterator[str]:
    """This server's name for as long as it looks after jobs. ``takes_jobs``: whether it starts any; its name says so,
    which takes no space on a full disk."""
    server = f"{socket.gethostname()}.{TAKES_JOBS if takes_jobs else ''}{secrets.token_hex(4)}"
    folder = _folder(data_dir, server)
    with lock.hold(folder):
        _remove_folders_of_the_dead(data_dir)
        yield server
    shutil.rmtree(folder, ignore_errors=True)  # a server that starts may be at it too


def _remove_folders_of_the_dead(data_dir: Path) -> None:
    """Of this machine's servers that were killed."""
    newest = time.time() - STARTING
    for folder in (data_dir / "servers").iterdir():
        if not _is_of_this_machine(folder.name):
            continue
        with contextlib.suppress(FileNotFoundError):  # another server stops, or removes it too
            if folder.stat().st_mtime < newest and not lock.held(folder):
                shutil.rmtree(folder)


def _is_of_this_machine(server: str) -> bool:
    return server.rpartition(".")[0] == socket.gethostname()


def takes_jobs_here(data_dir: Path) -> bool:
    """Whether a server of this machine lives that takes jobs."""
    pattern = f"{glob.escape(socket.gethostname())}.{TAKES_JOBS}*"
    return any(lock.held(folder) for folder in (data_dir / "servers").glob(pattern))


def gone(data_dir: Path, server: str | None) -> bool | None:
    """Whether the server of that name has died; None for one on another machine, whose locks say nothing here."""
    if server is None:
        return True
    if not _is_of_this_machine(server):
        return None
    return not lock.held(_folder(data_dir, server))
