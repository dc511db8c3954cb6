"""How `training.federated.flower_local` ends a SuperLink: without Flower, whose processes end in no fixed order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from training.federated.flower_local import ROOT, end_superlink, processes_of

STARTS_PROCESSES = """
import os, time
for _ in range(200):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print(flush=True)
    time.sleep(0.001)
"""

SUPERLINK = f"""#!{sys.executable}
import http.server, os, sys
if os.fork() == 0:
    os.execlp("sleep", "sleep", "60")
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Healthy).serve_forever()
"""
WAITING_RUN = """
import sys, time
from functools import partial
from pathlib import Path
from training.federated import flower_local

def run(app, env, *_):
    print(env["FLWR_HOME"], flush=True)
    time.sleep(60)

flower_local.superlink, flower_local.run = partial(flower_local.superlink, bin=Path(sys.argv.pop(1))), run
flower_local.main()
"""


def test_a_run_that_is_terminated_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / "flower-superlink").write_text(SUPERLINK)
    (tmp_path / "flower-superlink").chmod(0o700)
    command = [sys.executable, "-c", WAITING_RUN, str(tmp_path), "app"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    home = running.stdout.readline().strip()
    assert len(processes_of(home)) == 2
    running.terminate()
    assert running.wait() == 128 + signal.SIGTERM
    assert processes_of(home) == [] and not Path(home).exists()
    running.communicate()


def test_processes_that_start_while_a_superlink_is_ended_are_ended_too(tmp_path: Path) -> None:
    env = os.environ | {"FLWR_HOME": str(tmp_path)}
    superlink = subprocess.Popen([sys.executable, "-c", "pass"], env=env)
    superlink.wait()
    starting = subprocess.Popen([sys.executable, "-c", STARTS_PROCESSES], env=env, stdout=subprocess.PIPE)
    assert starting.stdout is not None and starting.stdout.readline()
    end_superlink(superlink, str(tmp_path))
    assert processes_of(str(tmp_path)) == []
    starting.communicate()
