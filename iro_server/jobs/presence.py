"""Which servers live: each holds a lock of its own in the data directory, which the kernel frees however it dies."""

from __future__ import annotations

import contextlib
import glob
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from iro_server.jobs import lock


def _folder(data_dir: Path, server: str) -> Path:
    return data_dir / "servers" / server


@contextlib.contextmanager
def present(data_dir: Path) -> Iterator[str]:
    """This server's name for as long as it looks after jobs."""
    server = f"{socket.gethostname()}.{secrets.token_hex(4)}"
    folder = _folder(data_dir, server)
    with lock.hold(folder):
        yield server
    shutil.rmtree(folder)


def here(data_dir: Path) -> bool:
    """Whether a server of this machine looks after jobs."""
    return any(lock.held(folder) for folder in (data_dir / "servers").glob(f"{glob.escape(socket.gethostname())}.*"))


def gone(data_dir: Path, server: str | None) -> bool | None:
    """Whether the server of that name has died; None for one on another machine, whose locks say nothing here."""
    if server is None:
        return True
    if server.rpartition(".")[0] != socket.gethostname():
        return None
    return not lock.held(_folder(data_dir, server))
