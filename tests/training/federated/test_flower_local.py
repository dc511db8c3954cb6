"""How `training.federated.flower_local` ends a SuperLink: without Flower, whose processes end in no fixed order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from training.federated.flower_local import end_superlink, processes_of

STARTS_PROCESSES = """
import os, time
for _ in range(200):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print(flush=True)
    time.sleep(0.001)
"""


def test_processes_that_start_while_a_superlink_is_ended_are_ended_too(tmp_path: Path) -> None:
    env = os.environ | {"FLWR_HOME": str(tmp_path)}
    superlink = subprocess.Popen([sys.executable, "-c", "pass"], env=env)
    superlink.wait()
    starting = subprocess.Popen([sys.executable, "-c", STARTS_PROCESSES], env=env, stdout=subprocess.PIPE)
    assert starting.stdout is not None and starting.stdout.readline()
    end_superlink(superlink, str(tmp_path))
    assert processes_of(str(tmp_path)) == []
    starting.communicate()
