"""What needs an adapter's folder: a server that has loaded it may read it again for any request that names it."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Adapter:
    """``name``: the model's name in requests, which no other tilt or strength has. ``path``: as the servers see it."""

    name: str
    path: Path


class AdapterHolds:
    """Counts who holds each adapter: the variants of tilts, and sessions. Use it from any thread. ``dispose``: called
    with an adapter that nobody holds any more; it calls ``remove``, at once or later."""

    def __init__(self, dispose: Callable[[Adapter], None] | None = None) -> None:
        self._dispose = dispose or self.remove
        self._counts: Counter[Adapter] = Counter()
        self._lock = threading.RLock()  # a finalizer, which releases, may run in the thread that has it

    def hold(self, adapter: Adapter) -> None:
        with self._lock:
            self._counts[adapter] += 1

    def release(self, adapter: Adapter) -> None:
        with self._lock:
            self._counts[adapter] -= 1
            is_unused = self._counts[adapter] <= 0
            if is_unused:
                del self._counts[adapter]
        if is_unused:
            self._dispose(adapter)

    def remove(self, adapter: Adapter) -> None:
        """Its folder, unless somebody holds it again."""
        with self._lock:
            if adapter not in self._counts:
                shutil.rmtree(adapter.path, ignore_errors=True)  # another process may be at it too
