"""What goes on in a sandbox, seen from outside: the kernel's own limits are of one process, not of all together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from iro_server.surroundings import PythonLimits

MOST_FILES = 10_000  # in the writable folder: each takes kernel memory too
PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch:
    """``proc`` and ``folder``: descriptors of the sandbox's own /proc and of its writable folder."""

    def __init__(self, proc: int, folder: int, limits: PythonLimits):
        self._proc = proc
        self._folder = folder
        self._limits = limits

    def excess(self) -> str | None:
        """What its processes have together taken too much of."""
        folder = os.fstatvfs(self._folder)
        used = (folder.f_blocks - folder.f_bfree) * folder.f_frsize
        for statm in self._each("statm"):
            _, resident, shared, *_ = statm.split()
            used += (int(resident) - int(shared)) * PAGE  # shared: libraries, and files of the folder
        if used > self._limits.memory_bytes:
            return f"used more than {self._limits.memory_bytes // 2**20} MiB of memory"
        if folder.f_files - folder.f_ffree > MOST_FILES:
            return f"made more than {MOST_FILES} files"
        return None

    def tasks(self) -> int:
        """How many processes and threads there are."""
        return sum(int(stat.rsplit(")", 1)[1].split()[17]) for stat in self._each("stat"))

    def close(self) -> None:
        os.close(self._proc)
        os.close(self._folder)

    def _each(self, name: str) -> Iterator[str]:
        for pid in filter(str.isdigit, os.listdir(self._proc)):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                descriptor = os.open(f"{pid}/{name}", os.O_RDONLY, dir_fd=self._proc)
                with open(descriptor, errors="replace") as file:
                    content = file.read()
                yield content
