"""Graders of several tenants are parsed at once."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from iro_server.graders.parsing import parse_grader

THREADS = 8
NESTED = "(" * 60 + "1" + " + 1)" * 60


@pytest.fixture
def threads_change_often() -> Iterator[None]:
    """Garbage is collected while trees are built, and each collection lets another thread run."""

    def let_another_run(*_: object) -> None:
        time.sleep(0)

    thresholds = gc.get_threshold()
    gc.set_threshold(20)
    gc.callbacks.append(let_another_run)
    yield
    gc.callbacks.remove(let_another_run)
    gc.set_threshold(*thresholds)


def test_sources_and_formulas_are_parsed_at_once(threads_change_often: None) -> None:
    source = f"def grade(sample, item):\n    return {NESTED}\n"
    python = {"type": "python", "source": source, "name": "a"}
    spec = {"type": "multi", "graders": {"a": python}, "calculate_output": NESTED.replace("1", "a")}

    def parse(_: int) -> None:
        for _ in range(3):
            parse_grader(spec).close()

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(parse, range(THREADS)))
