"""``iro serve`` as a process of its own, on a free port of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx
import psutil

START_SECONDS = 120.0
STOP_SECONDS = 60.0


class ServerProcess:
    """Ready inside ``with``; ``settings`` are given to it as IRO_<NAME>. It logs to ``<data dir>/server.log``."""

    def __init__(self, data_dir: Path, **settings: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.data_dir, self.settings = data_dir, settings
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        iro = str(Path(sys.executable).with_name("iro"))
        environment = os.environ | {f"IRO_{name.upper()}": str(value) for name, value in self.settings.items()}
        with (self.data_dir / "server.log").open("ab") as log:
            command = [iro, "serve", "--port", str(self.port), "--data-dir", str(self.data_dir)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {(self.data_dir / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health").is_success
        except httpx.TransportError:
            return False
