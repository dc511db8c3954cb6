"""How many threads compute a step: as many as there are cores that other processes leave idle.

A parallel operation ends with its slowest thread. A team of threads that shares a core with another process waits for
that one, and while it waits it uses the cores that the other process needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

INTERVAL = 0.5  # seconds over which use is averaged
STALE = 5.0  # seconds: an average over longer tells nothing of now


@dataclass(frozen=True)
class CpuUse:
    """Seconds of all cores together: ``busy`` of the machine, ``process_busy`` of this process.

    ``moment``: seconds on the monotonic clock.
    """

    moment: float
    busy: float
    process_busy: float


def measure_use() -> CpuUse:
    times, process_times = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted as user time too
    return CpuUse(time.monotonic(), sum(times) - idle - guest, process_times.user + process_times.system)


class ThreadCount:
    """``count``, from 1 to ``most``: the cores that other processes left idle when it was last updated."""

    def __init__(self, most: int, use: Callable[[], CpuUse] = measure_use, cores: int | None = None) -> None:
        self.most = self.count = most
        self._use, self._cores = use, cores or os.cpu_count() or 1
        self._since = use()

    def update(self) -> None:
        """Measure again, where INTERVAL has passed."""
        if time.monotonic() - self._since.moment < INTERVAL:
            return
        since, now = self._since, self._use()
        self._since = now
        elapsed = now.moment - since.moment
        if elapsed < STALE:
            others = (now.busy - since.busy - (now.process_busy - since.process_busy)) / elapsed
            self.count = min(self.most, max(1, round(self._cores - others)))
