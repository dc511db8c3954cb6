"""Control groups (cgroup v2) of sandboxes: the kernel bounds all memory of each together, its own for them included.

The server may make groups below its own where those were delegated to it: by systemd's ``Delegate=yes``, or in a
container whose /sys/fs/cgroup is writable. A group that limits groups below it may hold no process itself, so the
server moves to ``iro-server`` beside them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import time
from pathlib import Path

from iro_server.graders.environment import PythonLimits

CONTROLLERS = {"memory", "pids"}
SERVER, SANDBOX = "iro-server", "iro-grader"
BUBBLEWRAP = 2  # processes of its own: one outside the sandbox, one that reaps inside
FREEZING = 1.0  # seconds


class Group:
    """A new group below ``parent``, to be joined by one sandbox. Raises OSError where it cannot be made."""

    def __init__(self, parent: Path, limits: PythonLimits):
        self.path = parent / f"{SANDBOX}-{os.getpid()}-{secrets.token_hex(4)}"
        self.path.mkdir()
        try:
            self._limit(limits)
        except OSError:
            self.remove()
            raise

    def _limit(self, limits: PythonLimits) -> None:
        for name, value in settings(limits).items():
            if (self.path / name).exists():  # without swap, and in a hierarchy without the controller, it does not
                (self.path / name).write_text(value)

    def freeze(self) -> bool:
        """Let none of its processes run on. False where that takes too long, or the group is gone."""
        self._write("cgroup.freeze", "1")
        deadline = time.monotonic() + FREEZING
        while not self.counters("cgroup.events").get("frozen"):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def thaw(self) -> None:
        self._write("cgroup.freeze", "0")

    def kill(self) -> None:
        """Kill all its processes, frozen ones too."""
        self._write("cgroup.kill", "1")
        self.thaw()  # before Linux 5.14 nothing is killed so, and bubblewrap outside is to see the end of the sandbox

    def outgrown(self) -> bool:
        """Whether the kernel has killed a process for the limit of memory."""
        return self.counters("memory.events").get("oom_kill", 0) > 0

    def counters(self, name: str) -> dict[str, int]:
        """A file of lines ``key value``; empty without the file."""
        with contextlib.suppress(OSError):
            return {key: int(value) for key, value in map(str.split, (self.path / name).read_text().splitlines())}
        return {}

    def _write(self, name: str, value: str) -> None:
        with contextlib.suppress(OSError):  # another thread has removed it
            (self.path / name).write_text(value)

    def remove(self) -> None:
        """Its processes have ended, or end within a second."""
        for _ in range(100):
            try:
                return self.path.rmdir()
            except FileNotFoundError:
                return None
            except OSError:  # EBUSY: the last of them is still being taken down
                time.sleep(0.01)


def settings(limits: PythonLimits) -> dict[str, str]:
    """By file. Memory beyond the limit ends all processes of the group, not one that the kernel picks."""
    return {
        "memory.max": str(limits.memory_bytes),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": str(limits.processes + BUBBLEWRAP),
    }


def parent() -> Path | None:
    """The group to make sandboxes' groups in; None where this server may make none that limit memory."""
    return _choice()[0]


def memory_bound() -> str:
    """What bounds a sandbox's memory on this host, for people."""
    folder, problem = _choice()
    if folder:
        return f"a cgroup of its own in {folder} bounds each sandbox, its kernel memory included"
    return f"system call filter, resource limits and a watch bound each sandbox: no cgroup for it ({problem})"


@functools.cache
def _choice() -> tuple[Path | None, str]:
    try:
        group = server_group(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        if group is None:
            return None, "no cgroup v2 is mounted"
        return prepare(group), ""
    except OSError as error:
        return None, str(error)


def server_group(mountinfo: str, membership: str) -> Path | None:
    """This process's folder in the cgroup v2 hierarchy, by /proc/self/mountinfo and /proc/self/cgroup."""
    paths = [line.removeprefix("0::") for line in membership.splitlines() if line.startswith("0::")]
    mounts = [line.split() for line in mountinfo.splitlines() if " - cgroup2 " in line]
    for (*_, root, folder), path in ((mount[:5], path) for mount in mounts for path in paths):
        if Path(path).is_relative_to(root):
            return Path(folder) / Path(path).relative_to(root)
    return None


def prepare(group: Path) -> Path:
    """Have the groups below the server's (``group``, or that above it once it has moved) limit memory and processes.
    Raises OSError where that is not the server's to do."""
    folder = group.parent if group.name == SERVER else group
    if lacking := CONTROLLERS - set((folder / "cgroup.controllers").read_text().split()):
        raise OSError(f"{folder} has no controller of {' and '.join(sorted(lacking))}")
    if CONTROLLERS - set((folder / "cgroup.subtree_control").read_text().split()):
        _move_to(folder / SERVER)
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(CONTROLLERS)))
    _remove_abandoned(folder)
    Group(folder, PythonLimits()).remove()
    return folder


def _move_to(group: Path) -> None:
    group.mkdir(exist_ok=True)
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _remove_abandoned(folder: Path) -> None:
    """Groups of servers that were killed."""
    for group in folder.glob(f"{SANDBOX}-*"):
        if not Path("/proc", group.name.split("-")[2]).exists():
            with contextlib.suppress(OSError):
                group.rmdir()
