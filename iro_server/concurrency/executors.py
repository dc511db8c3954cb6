"""Calls that may block, in threads of a given executor: work of one kind never waits for threads of another kind."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

Result = TypeVar("Result")


async def in_thread(executor: Executor, call: Callable[..., Result], *args: object) -> Result:
    """The call's result: ``asyncio.to_thread`` with the executor chosen. Raises what the call raises."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(executor, lambda: context.run(call, *args))
