"""A PostgreSQL server of its own that is stopped, as by a crash, and started again under a running job."""

from __future__ import annotations

import glob
import importlib.util
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai

from benchmarks.faults_jobs import Jobs
from benchmarks.faults_ledger import Phase
from benchmarks.faults_results import Reference, upload_rows
from benchmarks.faults_server import Server, served
from benchmarks.faults_store import start
from benchmarks.faults_uploads import Uploads
from iro_server.settings import Settings

CRASHES = 3


def programs() -> Path | None:
    """Where PostgreSQL's programs are; Debian keeps them off the path."""
    found = shutil.which("pg_ctl") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"))), None)
    return Path(found).parent if found else None


class Postgres:
    def __init__(self, folder: Path, bin: Path) -> None:
        self.data, self.log, self.bin = folder / "data", folder / "log", bin
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        # It refuses to run as root; Debian's package makes a user for it.
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.as_user:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", str(self.data), "-U", "iro", "--auth=trust")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://iro@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data}"
        self._run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", str(self.log), "-o", options)

    def crash(self) -> None:
        self._run("pg_ctl", "stop", "-m", "immediate", "-D", str(self.data))

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self.as_user, str(self.bin / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


@contextmanager
def postgres(bin: Path) -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory() as folder:
        database = Postgres(Path(folder), bin)
        database.start()
        try:
            yield database
        finally:
            database.crash()


def crash_postgres(settings: Settings, log: Path, phase: Phase, reference: Reference, seed: int) -> None:
    """Requests get 503 while the database is away; the job under way ends as if nothing had been."""
    if (bin := programs()) is None or importlib.util.find_spec("psycopg") is None:
        phase.skipped = "needs PostgreSQL and the extra `postgres`"
        return
    rng = random.Random(f"{seed}-postgres")
    with postgres(bin) as database:
        server = Server(settings.model_copy(update={"database_url": database.url}), log)
        with served(server):
            jobs = Jobs([server], phase, {reference.recipe: reference}, rng)
            kept = Uploads([server], phase, 0)
            kept.sent["rows.jsonl"] = kept.hash_of(jobs.training_file)
            job = start(server, jobs, reference)
            for _ in range(CRASHES):
                kept.promise(upload_rows(server.client), "rows.jsonl")
                time.sleep(rng.uniform(0, 2))
                database.crash()
                phase.note("crashes of the database")
                try:
                    upload_rows(server.client)
                except openai.APIStatusError as error:
                    phase.expect(error.code == "storage_unavailable", f"without a database an upload got {error}")
                else:
                    phase.fault("lost", "an upload was acknowledged without a database")
                time.sleep(rng.uniform(0, 3))
                database.start()
            kept.check_all()
            jobs.judge(job, reference.recipe)
