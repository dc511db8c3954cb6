"""The scripts of docs/moving-from-openai.md, Python and Node, run as they stand but for the address and the model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.guide import GUIDE, code
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for

NODE = Path(__file__).parents[1] / "node"
with_node = pytest.mark.skipif("CI" not in os.environ and not shutil.which("npm"), reason="Node is not installed")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    configured = settings_for(tmp_path_factory.mktemp("data"), job_concurrency=3, python_graders="unsafe")
    with serving(configured, ByteEngine()) as client:
        yield client


@pytest.fixture(scope="module")
def modules():
    """Where Node finds its client."""
    if not (NODE / "node_modules").exists():
        subprocess.run(["npm", "ci"], cwd=NODE, check=True)
    return NODE / "node_modules"


def run(command: list[object], client, folder: Path) -> list[str]:
    """The lines that a program tells, which may read where the server is from the environment."""
    environment = os.environ | {"OPENAI_BASE_URL": str(client.base_url), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check_told(lines: list[str]) -> None:
    assert "The job has successfully completed" in lines
    assert any(":ckpt-step-" in line for line in lines)
    whole, streamed = lines[-2:]
    assert whole == streamed != ""


def test_the_python_example(client, tmp_path):
    script = tmp_path / "rft.py"
    script.write_text(code("python", str(client.base_url), "bytes"))
    check_told(run([sys.executable, script], client, tmp_path))


@with_node
@pytest.mark.slow(11)
def test_the_node_example(client, modules, tmp_path):
    script = modules / "rft.mjs"
    script.write_text(code("js", str(client.base_url), "bytes"))
    check_told(run(["node", script], client, tmp_path))


@with_node
@pytest.mark.slow(8)
def test_what_the_node_example_leaves_out(client, modules, tmp_path):
    run(["node", NODE / "contract.mjs"], client, tmp_path)


def test_links_of_the_guide_lead_somewhere():
    for link in ("results.md", "hyperparameters.md"):
        assert f"({link}" in GUIDE.read_text() and (GUIDE.parent / link).exists()
