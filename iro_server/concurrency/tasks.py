"""Concurrent work that succeeds or fails as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

Result = TypeVar("Result")


async def gather_or_cancel(works: Iterable[Coroutine[object, None, Result]]) -> list[Result]:
    """All results, in order. The first failure is raised, and ends the others: nobody waits for them."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
