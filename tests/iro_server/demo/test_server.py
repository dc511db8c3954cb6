"""The demo's own server."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

SCRIPT = """
import sys, time
from pathlib import Path
from iro_server.cli.demo.server import running_server

with running_server(Path(sys.argv[1])) as client:
    print(client.base_url, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow(15)
def test_a_demo_that_is_terminated_leaves_no_server_behind(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "server.log")], stdout=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None
    url = demo.stdout.readline().strip()
    assert httpx.get(f"{url}models").status_code == 200
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}models")
