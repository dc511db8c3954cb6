"""A server of the demo's own: another process, a free port, a data directory that is thrown away."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from openai import APIConnectionError, OpenAI

from iro_server.cli.demo import DemoError
from iro_server.engines.ports import free_port
from iro_server.graders.sandbox import isolation_problem

START_SECONDS = 300.0
STOP_SECONDS = 30.0
TRUSTED = {"IRO_PYTHON_GRADERS": "unsafe"}  # the demo's grader is its own, and must run where nothing can isolate it


@contextlib.contextmanager
def running_server(log: Path) -> Iterator[OpenAI]:
    """``iro serve``, ready, by the official client; SIGTERM ends it too. Main thread only.

    Raises DemoError, with the log's end, if it ends first.
    """
    port = free_port()
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="iro-demo-") as data_dir, log.open("wb") as output:
        command = [str(Path(sys.executable).with_name("iro")), "serve", "--port", str(port), "--data-dir", data_dir]
        environment = os.environ | (TRUSTED if isolation_problem() else {})
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=600, max_retries=0)
            _wait_until_ready(server, client, log)
            yield client
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            signal.signal(signal.SIGTERM, previous)


def _wait_until_ready(server: subprocess.Popen[bytes], client: OpenAI, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(APIConnectionError):
            client.models.list()
            return
        time.sleep(0.2)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    raise DemoError(f"the server is not ready ({log}):\n{end}")
