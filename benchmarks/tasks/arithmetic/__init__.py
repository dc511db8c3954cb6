"""Sums and differences of two numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.tasks.task import Example, Row, Split, Task, distinct_rows, prompt_text, python_grader, split_of
from iro_server import JsonObject

BATCH = 500  # problems that are generated at once
EASY: JsonObject = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
BATCHES = 100
WORKED = "2 + 3 = 5\n7 - 4 = 3\n12 + 9 = 21\n"


def prompts(split: Split, count: int, seed: int) -> list[Row]:
    """``chain_sum`` of reasoning-gym in its easiest settings."""
    rows = (row for row in _problems(seed) if split_of(prompt_text(row)) == split)
    return distinct_rows(rows, count)


def _problems(seed: int) -> Iterator[Row]:
    from reasoning_gym.factory import create_dataset

    for batch in range(BATCHES):
        for problem in create_dataset("chain_sum", seed=BATCHES * seed + batch, size=BATCH, **EASY):
            yield row_of(problem["metadata"]["expression"], problem["answer"])


def row_of(expression: str, answer: str) -> Row:
    return {"prompt": f"{WORKED}{expression} = ", "expression": expression, "answer": answer}


def judge(row: Row, completion: str) -> float:
    """1 if the first line is the result and nothing else."""
    return float(completion.strip().partition("\n")[0].strip() == row["answer"])


EXAMPLE = row_of("23 - 60", "-37")

ARITHMETIC = Task(
    name="arithmetic",
    summary="the exact sum or difference of two numbers",
    prompts=prompts,
    grader=partial(python_grader, "arithmetic"),
    judge=judge,
    judge_name="the result alone on the first line",
    good=(Example(EXAMPLE, "-37\n8 + 1 = 9", 1.0, 1.0), Example(EXAMPLE, "-37", 1.0, 1.0)),
    bad=(
        Example(EXAMPLE, "37", 0.0, 0.0),
        Example(EXAMPLE, "-3", 0.0, 0.0),
        Example(EXAMPLE, "unknown", 0.0, 0.0),
    ),
    max_tokens=8,
)
