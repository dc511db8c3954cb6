"""Heavy torch work beside an engine that steps in a thread of its own.

Each thread that runs a parallel torch operation keeps a team of OpenMP threads for as long as it lives, and a second
living team costs the engine half its speed on two cores. Work in a thread that ends takes its team along.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
_all_threads: int | None = None  # known once an engine runs beside this process


def beside_engines() -> None:
    """From now on ``sparing`` leaves a core to an engine of another process, which keeps one busy after each answer.

    vLLM's worker spins for a second, and a team of threads that shares its core waits for the slowest of them: scoring
    took four times as long on two cores.
    """
    global _all_threads
    _all_threads = _all_threads or torch.get_num_threads()


def sparing(work: Callable[[], T]) -> Callable[[], T]:
    """``work``, by one thread less than there are where engines run beside this process."""

    def spared() -> T:
        if _all_threads:
            torch.set_num_threads(max(1, _all_threads - 1))
        return work()

    return spared


def on_fresh_thread(work: Callable[[], T]) -> T:
    """What ``work`` returns or raises, run in a thread that ends with it."""

    def alone() -> T:
        if _all_threads:  # torch gives a new thread the number that any thread set last
            torch.set_num_threads(_all_threads)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(alone).result()
