"""Memory of the engine: how much is free, and what says that it is not enough."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

ALLOCATOR_MESSAGES = ("not enough memory", "can't allocate memory")  # of torch on a CPU, which has no class for them
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class EngineOutOfMemory(RuntimeError):
    """The memory of the engine's device does not hold a request."""


def as_memory_error(failure: BaseException) -> BaseException:
    """EngineOutOfMemory where ``failure`` is torch's for a failed allocation; else ``failure``."""
    is_cpu_allocator = isinstance(failure, RuntimeError) and any(text in str(failure) for text in ALLOCATOR_MESSAGES)
    if not (is_cpu_allocator or isinstance(failure, torch.OutOfMemoryError | MemoryError)):
        return failure
    error = EngineOutOfMemory(f"out of memory: {failure}")
    error.__cause__ = failure
    return error


def available_memory(device: torch.device) -> int:
    """Bytes that this process may still allocate on ``device``: on a CPU, of the machine's and of its container's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    available = int(psutil.virtual_memory().available)
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    if limit != "max":
        available = min(available, max(0, int(limit) - int(psutil.Process().memory_info().rss)))
    return available
