"""What goes on in a sandbox, seen from outside: the kernel's own limits are of one process, not of all together."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from iro_server.graders.environment import PythonLimits

MOST_FILES = 10_000  # in the writable folder: each takes kernel memory too
PAGE = os.sysconf("SC_PAGE_SIZE")
STOPPED = "TZX"  # states of a process that does not run on: stopped, ended, gone


class Watch:
    """``proc`` and ``folder``: descriptors of the sandbox's own /proc and of its writable folder."""

    def __init__(self, proc: int, folder: int, limits: PythonLimits):
        self._proc = proc
        self._folder = folder
        self._limits = limits

    def excess(self) -> str | None:
        """What its processes have together taken too much of."""
        folder = os.fstatvfs(self._folder)
        used = (folder.f_blocks - folder.f_bfree) * folder.f_frsize + self._socket_bytes()
        for statm in filter(None, self._per_process("statm")):
            _, resident, shared, *_ = statm.split()
            used += (int(resident) - int(shared)) * PAGE  # shared: libraries, and files of the folder
        if used > self._limits.memory_bytes:
            return outgrown(self._limits)
        if folder.f_files - folder.f_ffree > MOST_FILES:
            return f"made more than {MOST_FILES} files"
        return None

    def processes(self) -> int:
        """How many there are. One that ends during the look counts: it may have started another that the look has
        missed."""
        return len(self.pids())

    def running(self) -> list[str]:
        """Process ids of those that have a thread which is not stopped."""
        return [pid for pid in self.pids() if not all(state in STOPPED for state in self._thread_states(pid))]

    def _thread_states(self, pid: str) -> list[str]:
        """Of each thread; "?" for one that has ended since, and for a process that has."""
        threads: list[str] = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            folder = self.open(f"{pid}/task")
            try:
                threads = os.listdir(folder)
            finally:
                os.close(folder)
        stats = [self._read(f"{pid}/task/{thread}/stat") for thread in threads]
        return [_fields(stat)[0] if stat else "?" for stat in stats] or ["?"]

    def pids(self) -> list[str]:
        """In the sandbox's own namespace."""
        return [name for name in os.listdir(self._proc) if name.isdigit()]

    def open(self, path: str) -> int:
        """A descriptor of a file or folder in the sandbox's /proc."""
        return os.open(path, os.O_RDONLY, dir_fd=self._proc)

    def close(self) -> None:
        os.close(self._proc)
        os.close(self._folder)

    def _socket_bytes(self) -> int:
        """The most that its sockets' buffers may hold, those included that are on their way through a socket."""
        sockets = self._read("1/net/unix")
        return sockets.count("\n") * _socket_buffer() if sockets else 0

    def _per_process(self, name: str) -> Iterator[str | None]:
        """The file of each process; None of one that has ended since."""
        return (self._read(f"{pid}/{name}") for pid in self.pids())

    def _read(self, path: str) -> str | None:
        with (
            contextlib.suppress(FileNotFoundError, ProcessLookupError),
            open(self.open(path), errors="replace") as file,
        ):
            return file.read()
        return None


def outgrown(limits: PythonLimits) -> str:
    return f"used more than {limits.memory_bytes // 2**20} MiB of memory"


def _fields(stat: str) -> list[str]:
    """Of /proc/PID/stat, from the state on: the name before it may hold anything."""
    return stat.rsplit(")", 1)[1].split()


@functools.cache
def _socket_buffer() -> int:
    """The most bytes that may wait in a socket whose buffer nobody has enlarged: a last message starts below the limit
    and may be as long."""
    return 2 * int(Path("/proc/sys/net/core/wmem_default").read_text())
