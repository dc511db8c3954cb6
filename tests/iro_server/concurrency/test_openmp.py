"""OpenMP is told how to wait before torch reads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from iro_server.concurrency.openmp import job_environment, limit_spinning

CHILD = "import os, {module}; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"


def waiting(module: str, **chosen: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | chosen
    command = [sys.executable, "-c", CHILD.format(module=module)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.slow(5)
@pytest.mark.parametrize("module", ["iro_server.cli.main", "training.iro.job"])
def test_idle_threads_spin_for_a_short_time(module: str) -> None:
    assert waiting(module) == "20000 None"


def test_those_of_a_job_spin_shorter_unless_a_user_chose() -> None:
    environment = {"PATH": "/bin"}
    limit_spinning(environment)
    assert job_environment(environment) == {"PATH": "/bin", "GOMP_SPINCOUNT": "5000"}
    assert job_environment({"GOMP_SPINCOUNT": "7"}) == {"GOMP_SPINCOUNT": "7"}


def test_a_users_own_choice_stands() -> None:
    assert waiting("iro_server", OMP_WAIT_POLICY="active") == "None active"
    assert waiting("iro_server", GOMP_SPINCOUNT="5") == "5 None"


def test_torch_has_not_been_imported_before() -> None:
    """What is set after the import of torch has no effect."""
    script = "import sys, iro_server; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
