"""A python grader's process: a sandbox with the source loaded, replaced when a call ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from iro_server import JsonObject
from iro_server.graders.base import Grade
from iro_server.graders.ended import Ended, StartError
from iro_server.graders.environment import PythonLimits
from iro_server.graders.pool import POOL
from iro_server.graders.sandbox import Answer, Sandbox

Call = tuple[JsonObject, JsonObject]

LOAD_TIMEOUT = 60.0  # seconds for the source's own top level: unpacking weights, importing libraries
SLICE = 1.0  # seconds after which a batch gives its slot to other graders
LONGEST_ERROR = 2000  # characters
CLOSED = Grade.failed("the grader is closed", "python_grader_server_error")
TOO_DEEP = Grade.failed("the sample or the item is nested too deeply", "sample_parse_error")


class _NotLoaded(Exception):
    def __init__(self, grade: Grade):
        super().__init__(grade.error)
        self.grade = grade


def grade_in_slices(grade_some: Callable[[list[Call]], list[Grade]], calls: list[Call]) -> list[Grade]:
    """One grade a call. ``grade_some`` grades the first of the calls that it is given, and as many more as it can."""
    grades: list[Grade] = []
    while len(grades) < len(calls):
        grades += grade_some(calls[len(grades) :])
    return grades


class GraderProcess:
    """Starts on first use and again after a call that ended it; calls from several threads take turns.

    ``project``: for whom it grades; projects share the sandboxes.
    """

    def __init__(self, source: str, timeout: float, limits: PythonLimits, isolated: bool, project: str):
        self._start = {"source": source, "timeout": timeout}
        self._project = project
        self._timeout = timeout
        self._limits = limits
        self._isolated = isolated
        self._turn = threading.Lock()
        self._sandbox: Sandbox | None = None
        self._closed = False

    def grade_batch(self, calls: list[Call]) -> list[Grade]:
        """One grade a call. A call that hangs or ends the process fails alone: the rest go to a new process."""
        with self._turn:
            return grade_in_slices(self._grade_some, calls)

    def grade_some(self, calls: list[Call]) -> list[Grade]:
        """The first of ``calls``, and as many more as a slice of time allows."""
        with self._turn:
            return self._grade_some(calls)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End the process, in mid-call too: calls still running or made later fail."""
        self._closed = True
        if sandbox := self._sandbox:
            POOL.wake(sandbox)
            sandbox.close()

    def _grade_some(self, calls: list[Call]) -> list[Grade]:
        with POOL.slots.slot(self._project):
            return self._grade_slice(calls)

    def _grade_slice(self, calls: list[Call]) -> list[Grade]:
        if self._sandbox and not POOL.wake(self._sandbox):
            self._sandbox = None
        until = time.monotonic() + SLICE
        grades: list[Grade] = []
        try:
            while len(grades) < len(calls) and (not grades or time.monotonic() < until):
                if self._sandbox is None:
                    self._sandbox = self._load()
                answer = self._ask(self._sandbox, calls[len(grades)], self._timeout)
                grades.append(answer if isinstance(answer, Grade) else _grade(answer))
        except _NotLoaded as failed:
            return grades + [failed.grade] * (len(calls) - len(grades))
        self._rest()
        return grades

    def _load(self) -> Sandbox:
        if self._closed:
            raise _NotLoaded(CLOSED)
        try:
            self._sandbox = sandbox = POOL.take(self._limits, self._isolated)
        except (StartError, OSError) as error:
            failed = Grade.failed(f"the grader's process does not start: {error}", "python_grader_server_error")
            raise _NotLoaded(failed) from None
        if self._closed:  # by a close() that came too early to see the sandbox
            sandbox.close()
        answer = self._ask(sandbox, self._start, min(LOAD_TIMEOUT, self._limits.timeout))
        if answer is CLOSED:
            raise _NotLoaded(CLOSED)
        if answer.error is not None:
            sandbox.close()
            self._sandbox = None
            flag = answer.flag if isinstance(answer, Grade) else "python_grader_runtime_error"
            raise _NotLoaded(Grade.failed(f"the source does not load: {_printable(answer.error)}", flag))
        return sandbox

    def _ask(self, sandbox: Sandbox, message: object, timeout: float) -> Answer | Grade:
        """The answer; a failed grade where there is none."""
        try:
            return sandbox.ask(message, timeout)
        except RecursionError:
            return TOO_DEEP
        except Ended as ended:
            self._sandbox = None
            return CLOSED if self._closed else Grade.failed(str(ended), "python_grader_runtime_error")
        except OSError as error:
            sandbox.close()
            self._sandbox = None
            return Grade.failed(f"the grader's process cannot be reached: {error}", "python_grader_server_error")

    def _rest(self) -> None:
        """What a call left behind does not go on: the next calls get a new process."""
        if sandbox := self._sandbox:
            if sandbox.rest():
                POOL.rest(sandbox)
            else:
                sandbox.close()
                self._sandbox = None
            if self._closed:
                POOL.wake(sandbox)


def _grade(answer: Answer) -> Grade:
    if answer.error is not None or answer.reward is None:
        return Grade.failed(_printable(answer.error or "no reward"), "python_grader_runtime_error")
    return Grade.of(answer.reward)


def _printable(error: str) -> str:
    return error[:LONGEST_ERROR].replace("\0", "\N{REPLACEMENT CHARACTER}")
