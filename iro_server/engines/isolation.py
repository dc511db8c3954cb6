"""Work done for many at once that one of them can make fail."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def run_apart(compute: Callable[[list[Item]], None], items: Sequence[Item]) -> list[tuple[Item, Exception]]:
    """``compute`` the items at once; where that raises, each half by itself. Returns those that raise alone, with what
    they raise. ``compute`` must leave nothing behind where it raises."""
    if not items:
        return []
    try:
        compute(list(items))
        return []
    except Exception as raised:
        failure = raised
    traceback.clear_frames(failure.__traceback__)  # they hold tensors, whose memory the next attempt needs
    if len(items) == 1:
        return [(items[0], failure)]
    middle = len(items) // 2
    return run_apart(compute, items[:middle]) + run_apart(compute, items[middle:])
