"""A python grader that attacks, and what it must come to."""

from __future__ import annotations

import os
import textwrap
from dataclasses import dataclass

RUNTIME = "python_grader_runtime_error"
UNRESPONSIVE = "unresponsive_reward_error"
TIMES = "timed out after 1 s"
MEMORY = "used more than 256 MiB of memory"

PRELUDE = """
import ctypes, gc, inspect, json, mmap, os, resource, signal, socket, stat, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def syscall(*arguments):
    if libc.syscall(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def channel():
    for descriptor in range(3, 4096):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
"""


@dataclass(frozen=True)
class Hostile:
    """``body`` is run in a call. ``error``: part of the error, or None where it gets the reward 1 and does no harm.

    ``recovers``: whether a harmless call after it is graded normally. False for those that spoil only their process.
    """

    name: str
    body: str
    error: str | None
    flag: str = RUNTIME
    recovers: bool = True
    setup: str = ""

    @property
    def timeout(self) -> float:
        return 1 if self.error == TIMES else 5

    def source(self, secret: str, mark: str) -> str:
        body = textwrap.indent(textwrap.dedent(self.body).strip(), "    ")
        code = f"""{PRELUDE}
{textwrap.dedent(self.setup)}
def grade(sample, item):
    if item["calm"]:
        return 7.0
{body}
    return 1.0
"""
        return code.replace("@SECRET@", secret).replace("@MARK@", mark).replace("@PID@", str(os.getpid()))
