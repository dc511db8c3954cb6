"""A process that holds a python grader: started with the source, killed when a call takes too long.

Messages are JSON over a socket pair, length-prefixed by ``multiprocessing.connection``; the child's standard streams
play no part, so the user's code may print. To the child: ``{source, timeout}`` once, answered by ``{error}``; then a
list of ``[sample, item]``, answered one by one by ``{reward}`` or ``{error}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from iro_server.graders.base import Grade

Call = tuple[dict[str, Any], dict[str, Any]]

WORKER = Path(__file__).with_name("worker.py")
LOAD_TIMEOUT = 60.0  # seconds for the source's own top level: unpacking weights, importing libraries


def launch(argv: list[str], channel: int) -> subprocess.Popen[bytes]:
    """Start the child that runs the user's code; a sandbox belongs here, around ``argv``.

    ``channel`` is its only open file. The environment is not passed on: it may hold the server's secrets.
    """
    return subprocess.Popen(
        argv,
        pass_fds=[channel],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


class _Gone(Exception):
    """The child was killed for taking too long, or died; the message says which."""


class GraderProcess:
    """One worker. Starts on first use and again after a kill; calls from several threads take turns."""

    def __init__(self, source: str, timeout: float):
        self._source = source
        self._timeout = timeout
        self._turn = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        self._closed = False

    def grade_batch(self, calls: list[Call]) -> list[Grade]:
        """One grade a call. A call that hangs or kills the process fails alone: the rest go to a new process."""
        grades: list[Grade] = []
        with self._turn:
            while len(grades) < len(calls):
                if self._closed:
                    return grades + [Grade.failed("the grader is closed")] * (len(calls) - len(grades))
                if self._child is None and (error := self._start()):
                    return grades + [Grade.failed(error)] * (len(calls) - len(grades))
                try:
                    self._send(calls[len(grades) :])
                    for _ in calls[len(grades) :]:
                        grades.append(_grade(self._receive(self._timeout)))
                except _Gone as gone:
                    grades.append(Grade.failed(str(gone)))
        return grades

    def close(self) -> None:
        """End the child, in mid-call too: calls still running or made later fail."""
        self._closed = True
        if child := self._child:
            _end(child)
        with self._turn:  # a batch that was running has seen its child die by now
            self._kill()

    def _kill(self) -> None:
        if self._child is not None:
            _end(self._child)
            self._child.wait()
        if self._channel is not None:
            self._channel.close()
        self._child = self._channel = None

    def _start(self) -> str | None:
        """Launch the child and load the source; the error, if it does not load."""
        self._channel, theirs = Pipe()
        argv = [sys.executable, "-I", str(WORKER), str(theirs.fileno())]
        self._child = launch(argv, theirs.fileno())
        theirs.close()
        try:
            self._send({"source": self._source, "timeout": self._timeout})
            error = self._receive(LOAD_TIMEOUT)["error"]
        except _Gone as gone:
            error = str(gone)
        if error is None:
            return None
        self._kill()
        return f"the source does not load: {error}"

    def _send(self, message: object) -> None:
        assert self._channel is not None
        try:
            self._channel.send_bytes(json.dumps(message).encode())
        except OSError:
            raise self._died() from None

    def _receive(self, timeout: float) -> dict[str, Any]:
        assert self._channel is not None
        try:
            if not self._channel.poll(timeout):
                self._kill()
                raise _Gone(f"timed out after {timeout:g} s")
            return json.loads(self._channel.recv_bytes())
        except (EOFError, OSError):
            raise self._died() from None

    def _died(self) -> _Gone:
        child = self._child
        assert child is not None
        self._kill()
        return _Gone("the grader is closed" if self._closed else f"the grader's process died ({_fate(child)})")


def _end(child: subprocess.Popen[bytes]) -> None:
    # The child leads a session of its own: whatever it started goes with it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _fate(child: subprocess.Popen[bytes]) -> str:
    code = child.returncode
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _grade(answer: dict[str, Any]) -> Grade:
    return Grade.failed(answer["error"]) if "error" in answer else Grade.of(answer["reward"])
