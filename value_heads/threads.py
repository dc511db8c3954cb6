"""Torch work beside an engine that steps in another thread or process.

Each thread that runs a parallel torch operation keeps a team of OpenMP threads alive, and a second team halves the
engine's speed on two cores: with more of them than cores, OpenMP lets waiting threads sleep. So threads compute alone
once an engine runs, but for the engine's and short-lived ones, with which their team ends.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")
_fresh_threads: int | None = None  # OpenMP threads of work on a fresh thread, once an engine shares this machine
_leaves_core = False


@cache
def usual_threads() -> int:
    """Torch's own choice, which OMP_NUM_THREADS overrides. To be asked before anybody chooses another."""
    return torch.get_num_threads()


def compute_with(count: int) -> None:
    """This thread computes with ``count`` OpenMP threads, and threads to come with one.

    Torch gives a new thread the number that any thread set last, though not before its first operation where that is a
    product of matrices, which uses all cores.
    """
    torch.set_num_threads(count)
    if count > 1:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(torch.set_num_threads, 1).result()


def compute_as_engine(count: int) -> None:
    """``compute_with``, of the thread of an engine: later work on a fresh thread may use as many."""
    global _fresh_threads
    _fresh_threads = count
    compute_with(count)


def share_cores_with_engine() -> None:
    """Make ``leaving_engine_core`` leave one core to an engine in another process.

    vLLM's worker spins for a second after each answer, and an OpenMP team that shares its core waits for its slowest
    thread: scoring took four times as long on two cores.
    """
    global _fresh_threads, _leaves_core
    _fresh_threads, _leaves_core = _fresh_threads or usual_threads(), True


def leaving_engine_core(work: Callable[[], T]) -> Callable[[], T]:
    """``work`` with one thread fewer if an engine process shares this machine, else ``work`` unchanged."""

    def with_fewer_threads() -> T:
        if _leaves_core and _fresh_threads:
            compute_with(max(1, _fresh_threads - 1))
        return work()

    return with_fewer_threads


def on_fresh_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a new thread that ends with it; returns or raises what ``work`` does."""

    def run_work() -> T:
        if _fresh_threads:
            compute_with(_fresh_threads)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run_work).result()
