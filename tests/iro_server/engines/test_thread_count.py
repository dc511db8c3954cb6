"""A step's threads: as many as other processes leave idle cores."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from iro_server.engines import thread_count
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.thread_count import INTERVAL, STALE, CpuUse, ThreadCount
from tests.iro_server.engines.tiny import save_tiny_model


class Machine:
    """Eight cores, of which this process uses ``own`` and all others use ``others``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.use, self.own, self.others = CpuUse(100.0, 0.0, 0.0), 0.0, 0.0
        monkeypatch.setattr(thread_count, "time", SimpleNamespace(monotonic=lambda: self.use.moment))

    def count(self, threads: ThreadCount, seconds: float = INTERVAL) -> int:
        busy = self.use.busy + seconds * (self.own + self.others)
        self.use = CpuUse(self.use.moment + seconds, busy, self.use.process_busy + seconds * self.own)
        threads.update()
        return threads.count


def test_it_is_the_number_of_idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    threads = ThreadCount(6, lambda: machine.use, cores=8)
    machine.own = 6.0
    counts = []
    for machine.others in (0.0, 1.0, 3.0, 4.3, 7.6, 8.0, 0.0):
        counts.append(machine.count(threads))
    assert counts == [6, 6, 5, 4, 1, 1, 6]


def test_neither_a_moment_nor_a_long_rest_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    threads = ThreadCount(8, lambda: machine.use, cores=8)
    machine.others = 8.0
    assert machine.count(threads, INTERVAL / 2) == 8
    assert machine.count(threads, STALE) == 8
    assert machine.count(threads) == 1


@pytest.fixture
def busy_cores() -> Iterator[None]:
    """Two processes a core that compute, and have begun to."""
    program = "print(flush=True)\nwhile True: pass"
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2 * (os.cpu_count() or 1))]
    for process in processes:
        assert process.stdout and process.stdout.readline() == b"\n"
    yield
    for process in processes:
        process.kill()
        process.communicate()


def test_one_remains_on_a_busy_machine(busy_cores: None) -> None:
    threads, deadline = ThreadCount(8), time.monotonic() + 20
    while threads.count != 1:
        assert time.monotonic() < deadline, f"{threads.count} threads still"
        time.sleep(INTERVAL)
        threads.update()


async def test_an_engine_keeps_its_number_in_lockstep_and_adapts_it_otherwise(tmp_path: Path) -> None:
    with EmbeddedEngine(save_tiny_model(tmp_path), threads=2) as engine:
        engine._threads.count = 1
        engine._threads.update = lambda: None  # type: ignore[method-assign]
        counts: list[int] = []
        read = engine.runner.read

        def counted(runs: Any) -> Any:
            counts.append(torch.get_num_threads())
            return read(runs)

        engine.runner.read = counted  # type: ignore[method-assign]

        async def decode() -> set[int]:
            counts.clear()
            session = await engine.open([1, 2, 3], Sampling(seed=1))
            await session.extend([0], 2, 2)
            session.close()
            return set(counts)

        assert await decode() == {1}
        with engine.lockstep(1):
            assert await decode() == {2}
        assert await decode() == {1}
