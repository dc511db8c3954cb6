"""Torch work beside an engine that steps in another thread or process.

Each thread that runs a parallel torch operation keeps a team of OpenMP threads alive, and a second team halves the
engine's speed on two cores. A team ends with its thread, so such work runs in short-lived threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
_all_threads: int | None = None  # set once an engine shares this machine


def share_cores_with_engine() -> None:
    """Make ``leaving_engine_core`` leave one core to an engine in another process.

    vLLM's worker spins for a second after each answer, and an OpenMP team that shares its core waits for its slowest
    thread: scoring took four times as long on two cores.
    """
    global _all_threads
    _all_threads = _all_threads or torch.get_num_threads()


def leaving_engine_core(work: Callable[[], T]) -> Callable[[], T]:
    """``work`` with one thread fewer if an engine process shares this machine, else ``work`` unchanged."""

    def with_fewer_threads() -> T:
        if _all_threads:
            torch.set_num_threads(max(1, _all_threads - 1))
        return work()

    return with_fewer_threads


def on_fresh_thread(work: Callable[[], T]) -> T:
    """Run ``work`` in a new thread that ends with it; returns or raises what ``work`` does."""

    def run_work() -> T:
        if _all_threads:  # torch gives a new thread the number that any thread set last
            torch.set_num_threads(_all_threads)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run_work).result()
