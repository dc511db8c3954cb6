"""Python work of users' checks, in worker processes."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from loky.process_executor import TerminatedWorkerError

from iro_server.concurrency.worker_processes import CPU_SECONDS, in_worker_process
from iro_server.graders.similarity import METRICS, SHORT, similarity

LONG = "the tide goes out and comes in again " * 2700  # 100 KB


def test_a_result_and_an_exception_come_from_another_process() -> None:
    assert in_worker_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        in_worker_process(int, "x")


def test_a_worker_runs_behind_the_engine_and_goes_with_this_process() -> None:
    worker = psutil.Process(in_worker_process(os.getpid))
    assert worker.nice() > psutil.Process().nice()
    assert psutil.Process() in worker.parents()


def test_a_call_ends_after_its_limit_of_cpu_time_and_the_next_one_runs() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=f"took more than {CPU_SECONDS:g} s"):
        in_worker_process(eval, "sum(i for i in iter(int, 1))")
    assert time.monotonic() - started >= CPU_SECONDS
    assert in_worker_process(abs, -1) == 1


def test_a_worker_that_is_killed_is_replaced() -> None:
    with pytest.raises(TerminatedWorkerError):
        in_worker_process(os.kill, in_worker_process(os.getpid), signal.SIGKILL)
    assert in_worker_process(abs, -1) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_long_texts_take_no_time_of_this_process(metric: str) -> None:
    similarity(metric, LONG, LONG)  # the worker has imported what it needs
    started = time.thread_time()
    assert similarity(metric, LONG, LONG[: len(LONG) // 2]) < 1
    assert time.thread_time() - started < 0.05


@pytest.mark.parametrize("metric", METRICS)
def test_a_short_and_a_long_text_are_compared_alike(metric: str) -> None:
    text, reference = LONG[: SHORT // 2 + 1], LONG[SHORT // 4 : SHORT // 2]
    assert similarity(metric, text, reference) == METRICS[metric](text, reference)
