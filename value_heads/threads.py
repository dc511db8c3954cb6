"""Heavy torch work beside an engine that steps in a thread of its own.

Each thread that runs a parallel torch operation keeps a team of OpenMP threads for as long as it lives, and a second
living team costs the engine half its speed on two cores. Work in a thread that ends takes its team along.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def on_fresh_thread(work: Callable[[], T]) -> T:
    """What ``work`` returns or raises, run in a thread that ends with it."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()
