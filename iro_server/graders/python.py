"""The python grader: the user's ``grade(sample, item)``, run in isolated processes of its own."""

from __future__ import annotations

import ast
import functools
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import Field, PrivateAttr, field_validator

from iro_server.graders import syntax
from iro_server.graders.base import Grade, Grader, Item, Sample
from iro_server.graders.environment import GraderEnvironment, PythonLimits
from iro_server.graders.process import GraderProcess
from iro_server.graders.remote import RemoteGraderProcess
from iro_server.graders.sandbox import isolation_problem

logger = logging.getLogger(__name__)

LONGEST_SOURCE = 256 * 1024  # bytes, as OpenAI has it
MIN_SHARE = 8  # gradings that are worth waking another process


class PythonGrader(Grader):
    """``source`` defines ``grade(sample: dict, item: dict) -> float``; each of ``workers`` processes loads it once.

    ``timeout``: seconds one call may take before its process is killed, by default 30, or the most that the server
    allows if that is less (an extension to OpenAI's shape, as is ``workers``). ``image_tag`` is accepted and ignored:
    there is one environment.
    """

    type: Literal["python"]
    source: str = Field(min_length=1, repr=False)
    image_tag: str | None = None
    timeout: float = Field(30.0, gt=0, allow_inf_nan=False)
    workers: int = Field(min(2, os.cpu_count() or 1), ge=1, le=64)

    _processes: list[GraderProcess | RemoteGraderProcess] = PrivateAttr()

    @field_validator("source")
    @classmethod
    def _defines_grade(cls, source: str) -> str:
        if len(source.encode(errors="replace")) > LONGEST_SOURCE:
            raise ValueError(f"longer than {LONGEST_SOURCE // 1024} kB")
        try:
            tree = syntax.parse(source)
        except SyntaxError as error:
            raise ValueError(f"line {error.lineno}: {error.msg}") from None
        except (RecursionError, MemoryError):
            raise ValueError("nested too deeply to parse") from None
        check_signature(tree)
        return source

    def model_post_init(self, context: object) -> None:
        grader_environment = context if isinstance(context, GraderEnvironment) else GraderEnvironment.of_this_process()
        timeout = self._allowed_timeout(grader_environment.python_limits)
        self._processes = [_process(self.source, timeout, grader_environment) for _ in range(self.workers)]

    def _allowed_timeout(self, limits: PythonLimits) -> float:
        if "timeout" in self.model_fields_set and self.timeout > limits.timeout:
            raise ValueError(f"timeout is {self.timeout:g} s, more than the {limits.timeout:g} s this server allows")
        return min(self.timeout, limits.timeout)

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        calls = [(sample.as_dict(), item) for sample, item in pairs]
        shares = max(1, min(self.workers, len(calls) // MIN_SHARE))
        size = -(-len(calls) // shares)
        batches = [calls[start : start + size] for start in range(0, len(calls), size or 1)]
        with ThreadPoolExecutor(self.workers) as threads:
            graded = threads.map(lambda process, batch: process.grade_batch(batch), self._processes, batches)
            return [grade for batch in graded for grade in batch]

    def close(self) -> None:
        for process in self._processes:
            process.close()


def check_signature(tree: ast.Module) -> None:
    """ValueError unless the source defines ``grade``, for two arguments where a single ``def`` says so."""
    bindings = [node for node in ast.walk(tree) if _binds_grade(node)]
    if not bindings and any(isinstance(node, ast.AsyncFunctionDef) and node.name == "grade" for node in ast.walk(tree)):
        raise ValueError("grade is async; define it with def: grade(sample, item)")
    if not bindings:
        raise ValueError("defines no function grade(sample, item)")
    match bindings:
        case [ast.FunctionDef(args=arguments, decorator_list=[]) as function] if function in tree.body:
            if not _takes_two(arguments):
                raise ValueError(f"line {function.lineno}: grade is called with two arguments: def grade(sample, item)")


def _takes_two(arguments: ast.arguments) -> bool:
    """Whether a function can be called with two arguments by position."""
    most = len(arguments.posonlyargs) + len(arguments.args)
    required = most - len(arguments.defaults)
    return required <= 2 and (most >= 2 or arguments.vararg is not None) and None not in arguments.kw_defaults


def _binds_grade(node: ast.AST) -> bool:
    match node:
        case ast.FunctionDef(name="grade") | ast.Name(id="grade", ctx=ast.Store()):
            return True
        case ast.alias(name=name, asname=asname):
            return (asname or name) == "grade"
    return False


def _process(source: str, timeout: float, grader_environment: GraderEnvironment) -> GraderProcess | RemoteGraderProcess:
    """Not started yet. Raises ValueError where python graders may not run."""
    if grader_environment.python == "off":
        raise ValueError("python graders are switched off on this server")
    project = grader_environment.caller or grader_environment.project
    if grader_environment.grader_service:
        return RemoteGraderProcess(grader_environment.grader_service, source, timeout, project)
    return GraderProcess(source, timeout, grader_environment.python_limits, _isolated(grader_environment), project)


def _isolated(grader_environment: GraderEnvironment) -> bool:
    if grader_environment.python == "unsafe":
        _warn_unsafe()
        return False
    if (problem := isolation_problem()) and grader_environment.python == "own":
        _warn_unsafe()
        return False
    if problem:
        raise ValueError(
            f"python graders need isolation, which this host does not give: {problem}; "
            "install bubblewrap, or set IRO_PYTHON_GRADERS=unsafe to run them as plain processes"
        )
    return True


@functools.cache
def _warn_unsafe() -> None:
    logger.warning("python graders run as plain processes: their code may do whatever this server may")
