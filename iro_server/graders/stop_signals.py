"""Stopping a sandbox between two calls where it has no cgroup: by SIGSTOP, which code cannot catch.

Only SIGCONT wakes what is stopped. The system call filter refuses all by which a process could have the kernel send
it one later (``timer_create``, ``F_SETSIG``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from iro_server.graders.watch import Watch

STOPPING = 1.0  # seconds


class StopSignals:
    def __init__(self, watch: Watch):
        self._watch = watch

    def freeze(self) -> bool:
        """Let none of its processes run on. False where one still does after a second."""
        deadline = time.monotonic() + STOPPING
        while running := self._watch.running():
            if time.monotonic() > deadline:
                return False
            for pid in running:
                self._signal(pid, signal.SIGSTOP)
            time.sleep(0.0005)
        return True

    def thaw(self) -> None:
        for pid in self._watch.pids():
            self._signal(pid, signal.SIGCONT)

    def _signal(self, pid: str, number: int) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            process = self._watch.open(pid)
            try:
                signal.pidfd_send_signal(process, number)
            finally:
                os.close(process)
