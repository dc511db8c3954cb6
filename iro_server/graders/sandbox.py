"""One process that runs a user's code: isolated by ``bubblewrap.py``, or plain. It is watched while it is asked.

Whatever the code writes to the channel is data from a stranger: no more of it is read than one answer may be, and only
what answers the call just made counts.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from iro_server.graders import bubblewrap
from iro_server.graders.watch import Watch
from iro_server.surroundings import PythonLimits

START_TIMEOUT = 30.0  # seconds
TICK = 0.05  # seconds between looks at what the sandbox uses
AT_REST = 2  # tasks: bubblewrap's, which reaps, and the worker


class StartError(Exception):
    """The process does not start: no fault of the user's code, which has not run."""


class Ended(Exception):
    """The process is gone; the message says why."""


class Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    call: str
    reward: float | None = None
    error: str | None = None


class Sandbox:
    """Started at once, from a thread that must outlive it: bubblewrap ends with the thread that started it.

    Threads take turns to ask it, and any may close it at any time.
    """

    def __init__(self, limits: PythonLimits, isolated: bool):
        self.limits = limits
        self.isolated = isolated
        self._turn = threading.RLock()
        self._ending = threading.Lock()
        self._ended = False
        self._buffer = b""
        self._first: int | None = None  # a pidfd of its first process, which outlives the others
        self._watch: Watch | None = None
        self._next_look = 0.0
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        with theirs:
            try:
                self._process = bubblewrap.start(theirs.fileno(), limits) if isolated else _plain(theirs.fileno())
            except BaseException:
                self._channel.close()
                raise

    def ready(self) -> None:
        """Wait until the worker runs, confined. Raises StartError."""
        try:
            self._wait(select.POLLIN, time.monotonic() + START_TIMEOUT, "did not start")
            hello, descriptors, *_ = socket.recv_fds(self._channel, 64, 3, socket.MSG_CMSG_CLOEXEC)
        except Ended as ended:
            raise StartError(str(ended)) from None
        assert self._process.stderr is not None
        with self._process.stderr as errors:
            if hello != b"ready\n":
                died = self._end_of_itself()
                raise StartError(errors.read().decode(errors="replace").strip()[-500:] or died)
        if self.isolated:
            proc, folder, self._first = descriptors
            self._watch = Watch(proc, folder, self.limits)

    def ask(self, message: Any, timeout: float) -> Answer:
        """Raises Ended, with the process gone, when it does not answer in ``timeout`` seconds or breaks a limit."""
        number = secrets.token_hex(8)  # code from an earlier call cannot know it
        data = f"{number} {json.dumps(message)}\n".encode()
        deadline = time.monotonic() + timeout
        late = f"timed out after {timeout:g} s"
        with self._turn:
            if self._ended:
                raise Ended("closed")
            try:
                self._send(data, deadline, late)
                answer = Answer.model_validate_json(self._line(deadline, late))
            except ConnectionError:
                raise Ended(self._end_of_itself()) from None
            except ValidationError:
                raise self._end("the code wrote to the grader's channel, and no answer") from None
            if answer.call != number:
                raise self._end("the code wrote to the grader's channel, an answer to no call")
        return answer

    def at_rest(self) -> bool:
        """Whether nothing goes on in it: no process or thread but the worker, no answer that nobody asked for."""
        with self._turn:
            if self._ended or self._buffer or select.select([self._channel], [], [], 0)[0]:
                return False
            return self._watch is None or self._watch.tasks() == AT_REST

    def close(self) -> None:
        """End all its processes, in mid-call too, and wait until they are gone."""
        with self._ending:
            if not self._ended:
                self._kill()
                self._ended = True
        self._process.wait()
        with self._turn:  # a thread that was waiting for an answer has seen the end by now
            self._channel.close()
            if self._watch:
                self._watch.close()
            if self._first is not None:
                os.close(self._first)
            self._watch = self._first = None

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._first is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._first, signal.SIGKILL)

    def _send(self, data: bytes, deadline: float, late: str) -> None:
        view = memoryview(data)
        while view:
            self._wait(select.POLLOUT, deadline, late)
            view = view[self._channel.send(view) :]

    def _line(self, deadline: float, late: str) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > self.limits.output_bytes:
                raise self._end(f"answered with more than {self.limits.output_bytes} bytes")
            self._wait(select.POLLIN, deadline, late)
            received = self._channel.recv(2**16)
            if not received:
                raise Ended(self._end_of_itself())
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _wait(self, event: int, deadline: float, late: str) -> None:
        poll = select.poll()
        poll.register(self._channel, event)
        while True:
            now = time.monotonic()
            if now >= deadline:
                raise self._end(late)
            if self._watch and now >= self._next_look:
                if excess := self._watch.excess():
                    raise self._end(excess)
                self._next_look = now + TICK
            if poll.poll(1000 * min(TICK, deadline - now)):
                return

    def _end(self, why: str) -> Ended:
        self.close()
        return Ended(why)

    def _end_of_itself(self) -> str:
        """Why the channel is closed, once everything is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        code = self._process.returncode
        self.close()
        return "the code closed the grader's channel" if code is None else f"the grader's process died ({_fate(code)})"


def _plain(channel: int) -> subprocess.Popen[bytes]:
    return bubblewrap.popen([sys.executable, "-I", str(bubblewrap.WORKER), str(channel), "null"], [channel])


def _fate(code: int) -> str:
    number = -code if code < 0 else code - 128  # as bubblewrap reports a signal
    known = number in set(signal.Signals)
    return f"signal {signal.Signals(number).name}" if known else f"exit code {code}"


@functools.cache
def isolation_problem() -> str | None:
    """Why this host cannot isolate, found by starting a sandbox; None where it can."""
    try:
        sandbox = Sandbox(PythonLimits(), isolated=True)
        sandbox.ready()
    except (StartError, RuntimeError, OSError) as error:
        return str(error)
    sandbox.close()
    return None
