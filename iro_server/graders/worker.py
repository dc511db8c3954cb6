"""The child's side of ``process.py``: runs the user's code. A script on the standard library alone."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from types import ModuleType

FILE = "grader.py"  # the name under which the user's source appears in tracebacks


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


def describe(error: BaseException) -> str:
    """The exception and the line of the user's source it came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE]
    text = "".join(traceback.format_exception_only(error)).strip()
    return f"{text} ({FILE}, line {lines[-1]})" if lines else text


def main(channel: Connection) -> None:
    start = json.loads(channel.recv_bytes())
    try:
        module = load(start["source"])
    except BaseException as error:
        channel.send_bytes(json.dumps({"error": describe(error)}).encode())
        return
    channel.send_bytes(json.dumps({"error": None}).encode())
    while True:
        for sample, item in json.loads(channel.recv_bytes()):
            # The parent kills a call that takes too long; should the parent be gone, the alarm does.
            signal.setitimer(signal.ITIMER_REAL, start["timeout"] + 5)
            try:
                answer: dict[str, object] = {"reward": as_number(module.grade(sample, item))}
            except BaseException as error:
                answer = {"error": describe(error)}
            signal.setitimer(signal.ITIMER_REAL, 0)
            channel.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is done
        main(Connection(int(sys.argv[1])))
