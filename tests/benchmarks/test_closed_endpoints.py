"""What the benchmark of closed endpoints sends and how it averages."""

from __future__ import annotations

from benchmarks.closed_endpoints import METHODS, REQUESTS, answers_of, best, by_task, gains, means, with_request
from benchmarks.tasks import TASKS
from iro_server.graders.base import Sample
from iro_server.graders.parsing import parse_grader

ROW = {"prompt": "What is a tide?", "reference": "water"}


def test_a_request_is_a_system_message_and_the_row_stays_otherwise() -> None:
    (row,) = with_request([ROW], "Be brief.")
    assert row == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a tide?"}],
        "reference": "water",
    }
    (again,) = with_request([{"messages": row["messages"][1:]}], "Be brief.")
    assert again["messages"] == row["messages"]


def test_every_task_has_a_request_and_its_grader_scores_rows_that_hold_it() -> None:
    for name, request in REQUESTS.items():
        rows = with_request(TASKS[name].prompts("train", 2, 0), request)
        with parse_grader(TASKS[name].grader()) as grader:
            grades = grader.grade_many([(Sample("A tide is the rise of the sea."), row) for row in rows])
        assert all(-100 < grade.reward < 100 for grade in grades)


def test_rewards_are_means_over_all_answers_or_over_the_best_of_each_prompt() -> None:
    task = TASKS["brevity"]
    rows = task.prompts("train", 2, 0)
    parts = [{"texts": [["a", "b"], ["c", "d"]], "rewards": [[1.0, 3.0], [2.0, 0.0]]}]
    answers = answers_of(task, rows, parts)
    assert means(answers, lambda group: group)[0] == 1.5
    assert means(answers, best)[0] == 2.5


def test_gains_are_paired_by_seed() -> None:
    rows = [
        {
            "task": "brevity",
            "improved": bool(seed),
            "rewards": {name: seed + place for place, name in enumerate(METHODS)},
        }
        for seed in range(3)
    ]
    assert by_task({"rows": rows}, "rewards")["brevity"]["biased"]["mean"] == 3.0
    assert "| brevity | 2 [2, 2] | 1 [1, 1] | -1 [-1, -1] | 1 [1, 1] | some |" in gains({"rows": rows})
