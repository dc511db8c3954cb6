"""The child's side of ``sandbox.py``: runs the user's code. A script on the standard library alone.

``worker.py CHANNEL CONFINEMENT``: a socket's descriptor, and JSON of the limits to take on, or ``null``. The worker
says ``ready``, with descriptors by which the parent watches and ends the sandbox. Then come lines ``number json``, the
first with the source, the others each with a sample and an item; each is answered by a line of JSON,
``{"call": number, "reward" or "error": …}``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import traceback
from types import ModuleType
from typing import Any

FILE = "grader.py"  # the name under which the user's source appears in tracebacks
LONGEST_ERROR = 2000  # characters
CONFINED = "graders have no network here, and no files but their own empty folder"
OPEN_FILES = 256
PENDING_SIGNALS = 1024  # each takes kernel memory
CPU_SECONDS = 24 * 3600  # of one process, over all its calls; each call is limited by the clock


def confine(user: int | None, memory_bytes: int, processes: int, disk_bytes: int) -> list[int]:
    """Give up, for good, what the user's code must not have. Returns what the parent watches, as descriptors."""
    os.nice(10)
    watched = [os.open("/proc", os.O_RDONLY), os.open(os.curdir, os.O_RDONLY), os.pidfd_open(1)]
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_FSIZE: disk_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: PENDING_SIGNALS,
    }
    for which, value in limits.items():
        limit(1, which, value)  # the first process too: code of the same user could write to its memory
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for which, value in limits.items():
        limit(os.getpid(), which, value)
    return watched


def limit(process: int, which: int, value: int) -> None:
    _, hard = resource.prlimit(process, which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.prlimit(process, which, (value, value))


def load(source: str) -> ModuleType:
    module = ModuleType("grader")
    sys.modules["grader"] = module  # dataclasses and pickle look their module up
    exec(compile(source, FILE, "exec"), module.__dict__)
    if not callable(getattr(module, "grade", None)):
        raise TypeError("the source defines no function grade(sample, item)")
    return module


def as_number(value: object) -> float:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"grade returned {type(value).__name__}, not a number")
    return float(value)


def describe(error: BaseException, confined: bool) -> str:
    """The exception and the line of the user's source it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE]
    text = "".join(traceback.format_exception_only(error)).strip()
    text = text[:LONGEST_ERROR].encode(errors="replace").decode()
    text = f"{text} ({FILE}, line {lines[-1]})" if lines else text
    return f"{text}: {CONFINED}" if confined and isinstance(error, OSError) else text


def keys_of(arguments: dict[str, Any]) -> str:
    """The keys that a grader can read, for one that asked for another."""
    keys = {name: ", ".join(map(str, value)) for name, value in arguments.items() if isinstance(value, dict)}
    texts = (f"{name} has {text or 'no fields'}" for name, text in keys.items())
    return "".join(f"; {text}" for text in texts)[:LONGEST_ERROR].encode(errors="replace").decode()


def main(channel: socket.socket, confinement: dict[str, Any] | None) -> None:
    watched = confine(**confinement) if confinement else []
    socket.send_fds(channel, [b"ready\n"], watched)
    for descriptor in watched:
        os.close(descriptor)
    # The parent reads errors of the start there; the user's code must not write to it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    module: ModuleType | None = None
    timeout = 0.0
    arguments: dict[str, Any] = {}
    worker = os.getpid()
    for line in channel.makefile("rb"):
        number, _, message = line.partition(b" ")
        answer: dict[str, object] = {"call": number.decode()}
        try:
            if module is None:
                start = json.loads(message)
                timeout = start["timeout"]
                module = load(start["source"])
            else:
                arguments = dict(zip(("sample", "item"), json.loads(message), strict=True))
                # The parent kills a call that takes too long; should the parent be gone, the alarm does.
                signal.setitimer(signal.ITIMER_REAL, timeout + 5)
                answer["reward"] = as_number(module.grade(arguments["sample"], arguments["item"]))
        except BaseException as error:
            keys = keys_of(arguments) if type(error) is KeyError else ""
            answer["error"] = describe(error, confinement is not None) + keys
        if os.getpid() != worker:  # the user's code forked, and came back twice
            os._exit(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.sendall(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), json.loads(sys.argv[2]))
