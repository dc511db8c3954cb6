"""Servers in processes of their own, to be killed and started again, and the workers that they start."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import openai

from iro_server.engines.ports import free_port
from iro_server.jobs import lock
from iro_server.settings import Settings

SERVE = (
    "import sys; from iro_server.api.app import serve; from iro_server.settings import Settings; "
    "serve(Settings.model_validate_json(sys.argv[1]))"
)
PATIENCE = 300.0  # seconds for a server to start, or a job to end, before it counts as stuck
Answer = TypeVar("Answer")


class HasClient(Protocol):
    """Whatever can be asked by an OpenAI client."""

    @property
    def client(self) -> openai.OpenAI: ...


class Stuck(Exception):
    """Something that should have happened has not."""


class Server:
    """A server process over ``settings`` on a port of its own. ``program``: Python that serves ``sys.argv[1]``."""

    def __init__(self, settings: Settings, log: Path, program: str = SERVE) -> None:
        self.settings = settings.model_copy(update={"port": free_port()})
        self.log, self.program = log, program
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.settings.port}/v1", api_key="none", max_retries=0, timeout=90
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            command = [sys.executable, "-c", self.program, self.settings.model_dump_json()]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise Stuck(f"a server ended by itself with status {self.process.returncode}: see {self.log}")
        try:
            self.client.models.list()
        except openai.APIConnectionError:
            return False
        return True

    def wait(self) -> None:
        wait_for(self.answers, "a server to answer")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, stop_signal: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(stop_signal)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def served(*servers: Server) -> Iterator[None]:
    """The servers while they run; at the end neither they nor their workers do."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait()
        yield
    finally:
        for server in servers:
            server.stop()
        for data_dir in {server.settings.data_dir for server in servers}:
            for pid in workers(data_dir).values():  # whom a server left behind that was killed last
                kill(pid)


def workers(data_dir: Path) -> dict[str, int]:
    """The living workers' process ids by job."""
    holders = {folder.name: lock.holder(folder) for folder in sorted((data_dir / "jobs").glob("ftjob-*"))}
    return {job: pid for job, pid in holders.items() if pid is not None}


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended this instant
        os.kill(pid, signal.SIGKILL)


def wait_for(probe: Callable[[], Answer], name: str, seconds: float = PATIENCE) -> Answer:
    """The first true value of ``what()``. Raises Stuck."""
    deadline = time.monotonic() + seconds
    while not (value := probe()):
        if time.monotonic() > deadline:
            raise Stuck(f"waited {seconds:.0f} s in vain for {name}")
        time.sleep(0.05)
    return value


def insist(servers: Sequence[HasClient], call: Callable[[openai.OpenAI], Answer], seconds: float = PATIENCE) -> Answer:
    """What ``call`` gets of the first of ``servers`` that answers it. Raises Stuck, or the answer that is an error."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for server in servers:
            try:
                return call(server.client)
            except openai.APIConnectionError:
                continue
            except openai.InternalServerError as error:
                if error.status_code != 503:
                    raise
        time.sleep(0.1)
    raise Stuck(f"no server answered for {seconds:.0f} s")


def ended(servers: Sequence[HasClient], job_id: str, seconds: float = PATIENCE) -> Any:
    """The job once it has ended. Raises Stuck."""

    def ended_job() -> Any:
        job = insist(servers, lambda client: client.fine_tuning.jobs.retrieve(job_id))
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return wait_for(ended_job, f"{job_id} to end", seconds)
