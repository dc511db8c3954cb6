"""Python work of users' checks, in worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from iro_server.concurrency.worker_processes import CPU_SECONDS, MEMORY_BYTES, WorkerKilled, in_worker_process
from iro_server.graders.similarity import METRICS, SHORT, similarity
from tests.iro_server.api.serving import wait_for

LONG = "the tide goes out and comes in again " * 2700  # 100 KB


def test_a_result_and_an_exception_come_from_another_process() -> None:
    assert in_worker_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        in_worker_process(int, "x")


def test_a_worker_runs_behind_the_engine_and_goes_with_this_process() -> None:
    worker = psutil.Process(in_worker_process(os.getpid))
    assert worker.nice() > psutil.Process().nice()
    assert psutil.Process() in worker.parents()


@pytest.mark.slow(12)
def test_a_call_ends_after_its_limit_of_cpu_time_and_the_next_one_runs() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=f"took more than {CPU_SECONDS:g} s"):
        in_worker_process(eval, "sum(i for i in iter(int, 1))")
    assert time.monotonic() - started >= CPU_SECONDS
    assert in_worker_process(abs, -1) == 1


@pytest.mark.slow(8)
def test_what_a_call_loads_first_takes_none_of_its_time() -> None:
    def load() -> None:
        started = time.process_time()
        while time.process_time() < started + CPU_SECONDS + 1:
            pass

    assert in_worker_process(abs, -1, load=load) == 1


@pytest.mark.slow(5)
def test_a_call_ends_at_its_limit_of_memory_and_the_next_one_runs() -> None:
    with pytest.raises(MemoryError, match=f"took more than {MEMORY_BYTES // 2**20} MiB of memory"):
        in_worker_process(eval, "[bytearray(2**24) for _ in range(10**6)]")
    assert in_worker_process(abs, -1) == 1


PARENT = """
from iro_server.concurrency.worker_processes import in_worker_process

def work(path, killed):
    import os, signal, time
    if killed and not os.path.exists(killed):
        open(killed, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)

in_worker_process(work, {path!r}, {killed!r})
"""


@pytest.mark.parametrize("repeated", [False, True])
def test_a_worker_at_work_ends_soon_after_its_killed_parent(tmp_path: Path, repeated: bool) -> None:
    """``repeated``: it repeats the call of one that was killed."""
    started = tmp_path / "started"
    program = PARENT.format(path=str(started), killed=str(tmp_path / "killed") if repeated else None)
    with subprocess.Popen([sys.executable, "-c", program]) as parent:
        wait_for(lambda: started.exists() and started.read_text())
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert int(started.read_text()) in {child.pid for child in children}
    assert psutil.wait_procs(children, timeout=30)[1] == []


LOADED = """
import sys
from iro_server.graders.similarity import METRICS

for metric in METRICS.values():
    metric("a", "a")
    loaded = set(sys.modules)
    metric("the tide goes out", "the tide comes in")
    assert set(sys.modules) == loaded, set(sys.modules) - loaded
"""


def test_comparing_two_letters_imports_all_that_a_metric_needs() -> None:
    subprocess.run([sys.executable, "-c", LOADED], check=True)


def killer(unless: Path | None = None) -> Callable[[], str]:
    """A call that kills its process, unless ``unless`` is a file that such a call made before."""

    def kill_process() -> str:
        if unless is None or not unless.exists():
            if unless is not None:
                unless.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "checked"

    return kill_process


def test_a_call_whose_worker_is_killed_once_is_repeated_in_another(tmp_path: Path) -> None:
    assert in_worker_process(killer(unless=tmp_path / "killed")) == "checked"


def test_a_call_whose_workers_are_killed_twice_fails_with_its_likely_cause_and_the_next_one_runs() -> None:
    with pytest.raises(WorkerKilled, match="ran out of memory"):
        in_worker_process(killer())
    assert in_worker_process(abs, -1) == 1


def test_calls_beside_one_that_kills_its_workers_are_answered() -> None:
    with ThreadPoolExecutor(5) as threads:
        killed = threads.submit(in_worker_process, killer())
        answers = [threads.submit(in_worker_process, abs, -number) for number in range(4)]
        assert [answer.result() for answer in answers] == [0, 1, 2, 3]
        assert isinstance(killed.exception(), WorkerKilled)


@pytest.mark.parametrize(
    "metric", [pytest.param(name, marks=[] if name == "gleu" else pytest.mark.slow(6)) for name in METRICS]
)
def test_long_texts_take_no_time_of_this_process(metric: str) -> None:
    similarity(metric, LONG, LONG)  # the worker has imported what it needs
    started = time.thread_time()
    assert similarity(metric, LONG, LONG[: len(LONG) // 2]) < 1
    assert time.thread_time() - started < 0.05


@pytest.mark.parametrize("metric", METRICS)
def test_a_short_and_a_long_text_are_compared_alike(metric: str) -> None:
    text, reference = LONG[: SHORT // 2 + 1], LONG[SHORT // 4 : SHORT // 2]
    assert similarity(metric, text, reference) == METRICS[metric](text, reference)
