"""Processes side by side: their values, and their end with the run's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.run import Cancelled, Run
from training.workers import stop_if_asked, workers

BUSY = """
from pathlib import Path
from training.workers import workers
from tests.training.test_workers import wait_long
from training.run import Run

if __name__ == "__main__":
    with workers(2, Run(Path({folder!r}), 0)) as submit:
        submit(wait_long, {folder!r})()
"""


def power(x: int) -> tuple[int, int]:
    return x**2, os.getpid()


def wait_long(folder: str) -> None:
    (Path(folder) / "began").touch()
    time.sleep(600)


def wait_for_the_end() -> None:
    while True:
        time.sleep(0.05)
        stop_if_asked()


@pytest.mark.slow(6)
def test_values_come_from_processes_of_their_own_and_calls_end_with_the_run(tmp_path: Path) -> None:
    stop_answers = iter([False, True])
    run = Run(tmp_path, 0, should_stop=lambda: next(stop_answers))
    with pytest.raises(Cancelled), workers(2, Run(tmp_path, 0)) as submit:
        values_and_processes = [wait() for wait in [submit(power, x) for x in range(3)]]
        assert [value for value, _ in values_and_processes] == [0, 1, 4]
        assert os.getpid() not in [process for _, process in values_and_processes]
        submit(wait_for_the_end)
        run.stop_if_asked()
        run.stop_if_asked()


def test_workers_of_a_run_that_is_killed_end(tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    script.write_text(BUSY.format(folder=str(tmp_path)))
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment, cwd=root)
    assert run.stdout is not None
    while not (tmp_path / "began").exists():
        assert run.poll() is None
        time.sleep(0.1)
    run.kill()
    assert run.stdout.read() == b""  # ends once the last process that has inherited it does
    run.wait()
