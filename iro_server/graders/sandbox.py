"""One process that runs a user's code: isolated by ``bubblewrap.py``, or plain. While it is asked it is watched,
between two calls it is stopped.

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
import threading
import time

from pydantic import BaseModel, ConfigDict, ValidationError

from iro_server.graders import bubblewrap, cgroup
from iro_server.graders.ended import Ended, StartError, fate
from iro_server.graders.environment import PythonLimits
from iro_server.graders.stop_signals import StopSignals
from iro_server.graders.watch import Watch, outgrown

START_TIMEOUT = 30.0  # seconds
TICK = 0.05  # seconds between looks at what the sandbox uses
AT_REST = 2  # processes: bubblewrap's, which reaps, and the worker
REST_CHECKS = 3  # for other processes once those two are stopped: new ones may come while one looks


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
        self._group: cgroup.Group | None = None
        self._freezer: cgroup.Group | StopSignals | None = None
        self._frozen = False
        self._next_look = 0.0
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        with theirs:
            try:
                self._process = self._start(theirs.fileno())
            except BaseException:
                self._channel.close()
                if self._group:
                    self._group.remove()
                raise

    def _start(self, channel: int) -> subprocess.Popen[bytes]:
        if not self.isolated:
            return bubblewrap.start_plain(channel)
        if parent := cgroup.parent():
            self._group = cgroup.Group(parent, self.limits)
        return bubblewrap.start(channel, self.limits, self._group.path if self._group else None)

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
            self._freezer = self._group or StopSignals(self._watch)

    def ask(self, message: object, timeout: float) -> Answer:
        """Raises Ended, with the process gone, when it does not answer in ``timeout`` seconds or breaks a limit."""
        number = secrets.token_hex(8)  # code from an earlier call cannot know it
        data = f"{number} {json.dumps(message)}\n".encode()
        deadline = time.monotonic() + timeout
        late = f"timed out after {timeout:g} s"
        with self._turn:
            if self._ended:
                raise Ended("closed")
            self._thaw()
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

    def rest(self) -> bool:
        """Stop all its processes until it is asked again. False: a call has left something behind in it, be it a
        process or an answer that nobody asked for, and it is to be closed. Threads stop with the worker: libraries
        start some as they are imported, and a new sandbox for each would import them again for each."""
        with self._turn:
            if self._ended or self._unread():
                return False
            if self._watch is None or self._freezer is None:
                return True
            if self._watch.processes() != AT_REST:
                return False
            self._frozen = True
            stopped = self._freezer.freeze() and all(self._watch.processes() == AT_REST for _ in range(REST_CHECKS))
            return stopped and not self._unread()

    def _unread(self) -> bool:
        return bool(self._buffer or select.select([self._channel], [], [], 0)[0])

    def _thaw(self) -> None:
        if self._frozen and self._freezer:
            self._freezer.thaw()
        self._frozen = False

    def close(self) -> None:
        """End all its processes, in mid-call too, and wait until they are gone."""
        with self._ending:
            if not self._ended:
                self._kill()
                self._ended = True
        self._process.wait()
        if self._group:
            self._group.remove()
        with self._turn:  # a thread that was waiting for an answer has seen the end by now
            self._channel.close()
            if self._watch:
                self._watch.close()
            if self._first is not None:
                os.close(self._first)
            self._watch = self._first = self._freezer = None

    def _kill(self) -> None:
        if self._group:
            self._group.kill()
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
        grown = self._group is not None and self._group.outgrown()
        self.close()
        if grown:
            return outgrown(self.limits)
        return "the code closed the grader's channel" if code is None else f"the grader's process died ({fate(code)})"


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
