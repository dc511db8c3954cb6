"""Every task: its grader on answers that are right and wrong, and prompts that no other split holds."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from benchmarks.tasks import TASKS
from benchmarks.tasks.instructions import INSTRUCTIONS, UNCHECKED, checked_prompts, ifbench_grader, unseen_prompts
from benchmarks.tasks.keywords import vocabulary
from benchmarks.tasks.task import SPLITS, Task, prompt_text
from iro_server.graders.base import Sample
from iro_server.graders.parsing import parse_grader

COUNTS = {"train": 60, "validation": 16, "held_out": 16}
by_name = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


@by_name
def test_a_grader_rewards_good_answers_and_not_bad_ones(task: Task) -> None:
    examples = [*task.good, *task.bad]
    with parse_grader(task.grader()) as grader:
        grades = grader.grade_many([(Sample(example.completion), example.row) for example in examples])
        assert [grade.error for grade in grades] == [None] * len(examples)
        again = grader.grade_many([(Sample(example.completion), example.row) for example in examples])
    for example, grade in zip(examples, grades, strict=True):
        assert example.min_reward - 1e-9 <= grade.reward <= example.max_reward + 1e-9, example.completion
    assert [grade.reward for grade in again] == [grade.reward for grade in grades]
    worst_good = min(grade.reward for grade in grades[: len(task.good)])
    assert worst_good > max(grade.reward for grade in grades[len(task.good) :])


@by_name
def test_splits_are_disjoint_by_text_for_all_seeds(task: Task) -> None:
    texts = {
        split: {prompt_text(row) for seed in (0, 1) for row in task.prompts(split, COUNTS[split], seed)}
        for split in SPLITS
    }
    for first, second in itertools.combinations(SPLITS, 2):
        assert not texts[first] & texts[second]


@by_name
def test_a_seed_gives_the_same_distinct_rows_every_time(task: Task) -> None:
    rows = task.prompts("train", 40, 3)
    assert rows == task.prompts("train", 40, 3)
    assert len({prompt_text(row) for row in rows}) == 40
    assert rows != task.prompts("train", 40, 4)
    assert json.loads(json.dumps(rows)) == rows
    assert all(("messages" in row) != ("prompt" in row) for row in rows)


@by_name
def test_a_grader_reads_fields_that_every_row_has(task: Task) -> None:
    row = task.prompts("held_out", 1, 0)[0]
    with parse_grader(task.grader()) as grader:
        assert grader.item_fields() <= row.keys()
        grade = grader.grade(Sample("A short answer."), row)
    assert grade.error is None and math.isfinite(grade.reward)


@by_name
def test_a_judge_prefers_good_answers(task: Task) -> None:
    good, bad = (task.judge(examples[0].row, examples[0].completion) for examples in (task.good, task.bad))
    assert math.isfinite(good) and math.isfinite(bad)
    if task.bad[0].completion != "    return x\n":  # valid Python with a wrong result
        assert good > bad


def test_more_prompts_than_a_task_has_are_refused() -> None:
    with pytest.raises(ValueError, match="10000 prompts were requested"):
        TASKS["code"].prompts("train", 10_000, 0)


def test_words_of_held_out_prompts_occur_in_no_other_split() -> None:
    words = {
        split: {word for row in TASKS["keywords"].prompts(split, 50, 0) for word in row["words"]} for split in SPLITS
    }
    assert not words["train"] & words["held_out"] and not words["train"] & words["validation"]
    assert not words["validation"] & words["held_out"]
    assert min(len(vocabulary(split)) for split in SPLITS) > 100


def test_ifbench_has_its_294_prompts_of_instructions_that_no_job_saw() -> None:
    rows = unseen_prompts()
    assert len(rows) == 294 and all(prompt_text(row) for row in rows)
    names = {each["name"] for row in rows for each in row["instructions"]}
    assert not names & {instruction.name for instruction in INSTRUCTIONS}
    assert {*UNCHECKED} < names
    arguments = [value for row in rows for each in row["instructions"] for value in each["arguments"].values()]
    assert arguments and None not in arguments


def test_ifbench_checks_256_of_its_prompts_by_its_own_checkers() -> None:
    rows = checked_prompts("held_out", 256, 0)
    assert len({prompt_text(row) for row in rows}) == 256 and rows[::2] == checked_prompts("train", 128, 1)
    no_space = {"name": "format:no_whitespace", "arguments": {}}
    two_numbers = {"name": "count:numbers", "arguments": {"N": 2}}
    followed = {"1and2": ([no_space], 1.0), "1 and 2": ([two_numbers], 1.0), "2 of 3": ([no_space, two_numbers], 0.0)}
    with parse_grader(ifbench_grader()) as grader:
        pairs = [(Sample(text), {"instructions": instructions}) for text, (instructions, _) in followed.items()]
        assert [grade.reward for grade in grader.grade_many(pairs)] == [reward for _, reward in followed.values()]
        answers = [(Sample(text), row) for row in rows for text in ("A short answer.", "...", "")]
        grades = grader.grade_many(answers)
    assert [grade.error for grade in grades] == [None] * len(answers)
    assert not any(grade.reward for grade in grades[2::3]), "an empty answer follows nothing"
