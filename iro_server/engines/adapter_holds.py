"""What needs an adapter's folder: a server that has loaded it may read it again for any request that names it.

A folder's modification time tells other processes, which share its directory, when it was last in use.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("iro.engine")


@dataclass(frozen=True)
class Adapter:
    """``name``: the model's name in requests, which no other tilt or strength has. ``path``: as the servers see it."""

    name: str
    path: Path

    def mark_used(self) -> None:
        """Set its folder's time to now. Changes nothing where the folder is not there, or is another account's."""
        try:
            os.utime(self.path)
        except FileNotFoundError:
            pass  # it is written when a request needs it
        except OSError as error:
            log.warning("the adapter %s cannot be marked as in use: %s", self.path, error)


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

    def mark_all_used(self) -> None:
        with self._lock:
            adapters = list(self._counts)
        for adapter in adapters:
            adapter.mark_used()

    def remove(self, adapter: Adapter) -> None:
        """Its folder, unless somebody holds it again."""
        with self._lock:
            if adapter not in self._counts:
                shutil.rmtree(adapter.path, ignore_errors=True)  # another process may be at it too
