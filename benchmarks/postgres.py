"""A PostgreSQL server of its own, in a folder that goes when it ends: for fault runs and for tests."""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iro_server.engines.ports import free_port

MISSING = "needs PostgreSQL's programs and the extra `postgres`"


def programs() -> Path | None:
    """Where PostgreSQL's programs are, where their driver is installed too; Debian keeps them off the path."""
    if importlib.util.find_spec("psycopg") is None:
        return None
    pg_ctl = shutil.which("pg_ctl") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"))), None)
    return Path(pg_ctl).parent if pg_ctl else None


class Postgres:
    """``options``: what the server is started with, such as "-c fsync=off"."""

    def __init__(self, folder: Path, bin: Path, options: str = "") -> None:
        self.data, self.log, self.bin, self.options = folder / "data", folder / "log", bin, options
        self.port = free_port()
        # It refuses to run as root; Debian's package makes a user for it.
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.as_user:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", str(self.data), "-U", "iro", "--auth=trust")

    @property
    def url(self) -> str:
        return self.database("postgres")

    def database(self, name: str) -> str:
        return f"postgresql+psycopg://iro@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data} {self.options}"
        self._run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", str(self.log), "-o", options)

    def crash(self) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate", "-D", str(self.data))

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self.as_user, str(self.bin / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


@contextmanager
def postgres(bin: Path, options: str = "") -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory() as folder:
        database = Postgres(Path(folder), bin, options)
        database.start()
        try:
            yield database
        finally:
            database.crash()
