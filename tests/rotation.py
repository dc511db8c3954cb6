"""pytest's option ``--rotate-slow SECONDS``: marks as "rotated" the slow tests that this commit's run of CI takes.

A slow test states what it takes on two cores, ``@pytest.mark.slow(seconds)``. One that states nothing is never taken:
it is too long, or needs what CI does not install.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def rotation(seconds: Mapping[str, float], limit: float, seed: int) -> list[str]:
    """Names from ``seconds``, in an order that ``seed`` draws, whose times sum to ``limit`` seconds at most."""
    names = sorted(seconds)
    random.Random(seed).shuffle(names)
    selected: list[str] = []
    for name in names:
        if seconds[name] <= limit:
            selected.append(name)
            limit -= seconds[name]
    return selected


def commit_count() -> int:
    """The number of commits up to HEAD. Raises CalledProcessError outside a repository."""
    command = ["git", "rev-list", "--count", "HEAD"]
    return int(subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rotate-slow",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help='mark as "rotated" slow tests that take SECONDS together, others for each number of commits',
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rotated: a slow test that this run takes too (--rotate-slow)")


@pytest.hookimpl(tryfirst=True)  # before -m is applied
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if limit := config.getoption("--rotate-slow"):
        marks = {item.nodeid: item.get_closest_marker("slow") for item in items}
        seconds = {name: mark.args[0] for name, mark in marks.items() if mark and mark.args}
        selected = set(rotation(seconds, limit, commit_count()))
        for item in items:
            if item.nodeid in selected:
                item.add_marker("rotated")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--rotate-slow"):
        reports = [report for reports in terminalreporter.stats.values() for report in reports]
        names = {report.nodeid for report in reports if "rotated" in getattr(report, "keywords", ())}
        terminalreporter.section(f"{len(names)} slow tests of this commit's turn, number {commit_count()}")
        for name in sorted(names):
            terminalreporter.write_line(name)
