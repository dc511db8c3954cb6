"""Servers as processes of their own, on free ports of this machine: ``iro serve``, and vLLM."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx
import psutil

from iro_server.engines import vllm_server
from iro_server.engines.ports import free_port

STOP_SECONDS = 60.0


def terminated_is_exit() -> None:
    """A program told to end leaves its ``with`` blocks, so that no server outlives it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def say(stage: str) -> None:
    print(f"{time.strftime('%X')} {stage}", file=sys.stderr, flush=True)


class Server:
    """Ready inside ``with``; its output goes to ``log``."""

    start_seconds = 120.0
    health = "/v1/health"

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.log = log
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, env=self.environment(), start_new_session=True
            )
        deadline = time.monotonic() + self.start_seconds
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self.signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, which: signal.Signals) -> None:
        """To the server and all that it started in its session."""
        with contextlib.suppress(ProcessLookupError):  # all gone
            os.killpg(self.process.pid, which)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}{self.health}").is_success
        except httpx.TransportError:
            return False


class ServerProcess(Server):
    """``iro serve``; ``settings`` are given to it as IRO_<NAME>. It logs to ``<data dir>/server.log``."""

    def __init__(self, data_dir: Path, **settings: object) -> None:
        super().__init__(data_dir / "server.log")
        self.data_dir, self.settings = data_dir, settings

    def command(self) -> list[str]:
        iro = str(Path(sys.executable).with_name("iro"))
        return [iro, "serve", "--port", str(self.port), "--data-dir", str(self.data_dir)]

    def environment(self) -> dict[str, str]:
        return os.environ | {f"IRO_{name.upper()}": str(value) for name, value in self.settings.items()}

    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self.process.pid).memory_info().rss


class VLLMProcess(Server):
    """vLLM with the model of ``model_dir``, from the environment that ``make vllm`` installs; ``flags`` are its own."""

    start_seconds = 1800.0  # a minute on a quiet machine
    health = "/health"
    python = Path(".venv-vllm/bin/python")

    def __init__(self, model_dir: Path, log: Path, *flags: str) -> None:
        super().__init__(log)
        self.model_dir, self.flags = model_dir, flags

    def command(self) -> list[str]:
        return vllm_server.command(self.python, self.model_dir, self.port, *self.flags)

    def environment(self) -> dict[str, str]:
        return vllm_server.environment(os.environ)
