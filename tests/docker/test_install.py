"""The images' installation in a fresh environment: by the same script, from what the builder is sent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iro_server.engines.prepare import prepare_model
from iro_server.graders.bubblewrap import SERVER_PACKAGES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's bin/."""
    source, venv = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("opt") / "iro"
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in sent:
        (source / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    path = f"{Path(sys.executable).resolve().parent}{os.pathsep}{os.environ['PATH']}"
    for what in ("libraries", "iro"):
        command = [source / "docker/install.sh", what, venv, source]
        subprocess.run(command, check=True, env=bare() | {"PATH": path}, timeout=1200)
    return venv / "bin"


def bare() -> dict[str, str]:
    """Nothing of this repository is on Python's path."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "IRO_"))}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=bare(), cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_it_serves_and_works_and_holds_nothing_for_development(installed, tmp_path):
    assert "work" in run(installed / "iro", "--help", cwd=tmp_path)
    assert "align" in run(installed / "iro", "list", cwd=tmp_path)  # the entry point by which workers find the job
    # It makes the database's tables.
    run(installed / "iro", "keys", "create", "ops", "--data-dir", "data", cwd=tmp_path)
    modules = "import iro_server.api.app, iro_server.jobs.standalone, iro_server.jobs.worker, training.iro.job, psycopg"
    run(installed / "python", "-c", modules, cwd=tmp_path)
    unwanted = ("pytest", "ruff", "mypy", "hypothesis", "schemathesis", "pip", "nvidia-cudnn-cu12")
    names = "import importlib.metadata as m; print(*(d.name.lower() for d in m.distributions()))"
    found = set(run(installed / "python", "-c", names, cwd=tmp_path).split())
    assert {"iro-align", "torch", "psycopg"} <= found and not found & set(unwanted)
    model = ("--model", str(prepare_model()))
    said = run(installed / "iro", "generate", *model, "The film", "--text", "--max-tokens", "4", cwd=tmp_path)
    assert said.strip()


@pytest.mark.slow
def test_it_is_the_packages_that_graders_must_not_see_and_no_more(installed, tmp_path):
    where = "import iro_server, pathlib; print(pathlib.Path(iro_server.__file__).parents[1])"
    libraries = Path(run(installed / "python", "-c", where, cwd=tmp_path).strip())
    there = {path.name for path in libraries.iterdir()}
    assert {"iro_server", "training", "value_heads"} <= there & set(SERVER_PACKAGES)
    assert not there & {"benchmarks", "tests"}
