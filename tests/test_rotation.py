"""Slow tests in turn: within the time, the same for the same commit, and all of them over many commits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rotation import REPOSITORY, rotation

SECONDS = {f"test_{number}": 10.0 * number for number in range(1, 9)}
TESTS = """
import pytest

def test_quick(): pass

@pytest.mark.slow(20)
def test_slow(): pass

@pytest.mark.slow(50)
def test_slower_than_the_time(): pass

@pytest.mark.slow
def test_of_unknown_time(): pass
"""


@pytest.mark.parametrize("limit", [0, 5, 90, 1000])
def test_the_selected_tests_fit_in_the_time(limit: float) -> None:
    for seed in range(50):
        assert sum(SECONDS[name] for name in rotation(SECONDS, limit, seed)) <= limit


def test_a_commit_has_one_selection_whatever_the_order_of_collection() -> None:
    assert rotation(SECONDS, 90, 3) == rotation(dict(reversed(SECONDS.items())), 90, 3)


def test_every_test_that_fits_has_its_turn() -> None:
    assert {name for seed in range(50) for name in rotation(SECONDS, 75, seed)} == SECONDS.keys() - {"test_8"}


@pytest.mark.parametrize(("options", "names"), [((), []), (("--rotate-slow", "40"), ["test_slow"])])
def test_a_run_takes_its_turn_and_says_so(tmp_path: Path, options: tuple[str, ...], names: list[str]) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.rotation", "-m", "not slow or rotated", "-v", *options]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    passed = [line.split()[0].split("::")[1] for line in done.stdout.splitlines() if "PASSED" in line]
    assert passed == ["test_quick", *names]
    assert ("slow tests of this commit's turn" in done.stdout) == bool(options)
