"""The command that starts a python grader isolated: namespaces and a file system of its own, by bubblewrap.

What it sees, read-only: the Python that runs the server, with its libraries; ``/proc`` of its own processes. One
folder is writable, ``/tmp``, of limited size. A new network namespace holds no interface but loopback.

The kernel counts processes by user and exempts root. So a server that is not root gets a user namespace, in which the
count starts at none. A server that is root goes without one: the worker starts as root without any capability but
those it needs to become a user of the sandbox's own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from iro_server.graders import seccomp
from iro_server.graders.environment import PythonLimits

WORKER = Path(__file__).with_name("worker.py")
HOME = "/tmp"
USERS = range(20_000, 60_000)  # not those of people or services, and within what containers map
SERVER_PACKAGES = ["iro_server", "value_heads", "training", "benchmarks"]
ENVIRONMENT = {  # nothing of the server's own, which may hold secrets
    "PATH": "/usr/bin:/bin",
    "HOME": HOME,
    "USER": "grader",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # each more reserves address space, which the memory limit counts
}

_users = itertools.cycle(random.sample(USERS, len(USERS)))


def start(channel: int, limits: PythonLimits, group: Path | None = None) -> subprocess.Popen[bytes]:
    """The worker at ``channel``, a socket's descriptor, isolated, and in ``group``, a cgroup's folder. Raises
    FileNotFoundError without bubblewrap, RuntimeError without libseccomp, another OSError where the system is out of
    processes or files."""
    root = os.geteuid() == 0
    confinement = {
        "user": next(_users) if root else None,
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes,
        "disk_bytes": limits.disk_bytes,
    }
    program = seccomp.program()
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb") as pipe:
        pipe.write(program)  # far less than a pipe holds
        pipe.close()
        bwrap = [*_isolation(root), "--seccomp", str(reading), *_files(limits.disk_bytes), "--"]
        worker = [sys.executable, "-I", "/worker.py", str(channel), json.dumps(confinement)]
        return popen([*_enter(group), *bwrap, *worker], [channel, reading])


def start_plain(channel: int) -> subprocess.Popen[bytes]:
    return popen([sys.executable, "-I", str(WORKER), str(channel), "null"], [channel])


def popen(command: list[str], descriptors: list[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # of the start; the worker closes it before it loads the source
        env=ENVIRONMENT,
        start_new_session=True,
    )


def _enter(group: Path | None) -> list[str]:
    """A command before another: joins the group, and is what a host out of memory ends first. The sandbox itself
    could not be given either, as its /proc is read-only."""
    join = f"echo 0 > {shlex.quote(str(group / 'cgroup.procs'))}; " if group else ""
    return ["/bin/sh", "-ec", f'echo 1000 > /proc/self/oom_score_adj; {join}exec "$@"', "sh"]


def _isolation(root: bool) -> list[str]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise FileNotFoundError("there is no program bwrap")
    if root:
        rights = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        rights = ["--cap-drop", "ALL", "--unshare-user", "--disable-userns"]
    return [
        *(bwrap, "--die-with-parent", "--new-session", *rights),
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *("--hostname", "grader"),
    ]


def _files(disk_bytes: int) -> list[str]:
    binds = [("--dev-bind", path, path) for path in ["/dev/null", "/dev/random", "/dev/urandom"]]
    binds += [("--ro-bind-try", path, path) for path in _runtime()]
    binds.append(("--ro-bind", str(WORKER), "/worker.py"))
    # bubblewrap may make the folders above a bind for root alone.
    parents = sorted({str(parent) for _, _, path in binds for parent in Path(path).parents} - {"/"})
    return [
        *("--proc", "/proc", "--remount-ro", "/proc", "--perms", "0777", "--size", str(disk_bytes), "--tmpfs", HOME),
        *(option for parent in parents for option in ("--dir", parent)),
        *(option for bind in binds for option in bind),
        *(option for path in ["/bin", "/lib", "/lib64"] for option in _top(path)),
        *(option for path in _server_packages() for option in ("--tmpfs", path, "--remount-ro", path)),
        *("--symlink", "/proc/self/fd", "/dev/fd", "--symlink", HOME, "/dev/shm"),
        *("--remount-ro", "/", "--chdir", HOME),
    ]


def _runtime() -> Iterator[str]:
    """Of the system and of each prefix only programs and libraries: a server may keep its data beside them."""
    for prefix in sorted({"/usr", "/usr/local", sys.base_prefix, os.path.realpath(sys.base_prefix), sys.prefix}):
        yield from (f"{prefix}/{part}" for part in ["bin", "lib", "lib64", "pyvenv.cfg"])
    yield from ["/etc/ld.so.cache", "/etc/alternatives", "/usr/share/zoneinfo"]


def _top(path: str) -> tuple[str, ...]:
    return ("--symlink", os.readlink(path), path) if os.path.islink(path) else ("--ro-bind-try", path, path)


def _server_packages() -> list[str]:
    """Those that lie in what the sandbox sees."""
    folder = WORKER.parents[2]
    visible = any(folder.is_relative_to(path) for path in _runtime())
    return [str(folder / package) for package in SERVER_PACKAGES if visible and (folder / package).is_dir()]
