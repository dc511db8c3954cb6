"""The table of rewards in the README, and paired differences."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.bench_tasks.tables import budgets, gains, rewards, short


def content_of(*rows: tuple[str, str, int]) -> dict[str, Any]:
    """Of rows of a task, a method and a seed, one row each."""
    names = dict.fromkeys((task, method) for task, method, _ in rows)
    reward = {"mean": 0.5, "low": 0.25, "high": 0.75}
    return {
        "rows": [{"task": task, "method": method, "seed": seed, "rows": 1} for task, method, seed in rows],
        "intervals": [{"task": task, "method": method, "rows": 1, "reward": reward} for task, method in names],
    }


def test_a_task_says_how_many_seeds_its_rewards_are_from():
    once, twice = [("once", "base", 0), ("once", "iro", 0)], [("twice", "base", 3), ("twice", "base", 4)]
    head, _, *lines = short(content_of(*once, *twice, ("twice", "iro", 3), ("twice", "dpo", 0))).splitlines()
    assert head == "| method | rows | once (1 seed) | twice (1 to 2 seeds) |"
    assert lines[0] == "| frozen model | 1 | 0.50 [0.25, 0.75] | 0.50 [0.25, 0.75] |"
    assert "twice (2 seeds)" in short(content_of(*twice))


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.1, 0.3, 0.0004, "+0.20 [+0.10, +0.30]***"),
        (0.1, 0.3, 0.02, "+0.20 [+0.10, +0.30]*"),
        (0.1, 0.3, 0.06, "+0.20 [+0.10, +0.30]"),
        (-0.1, 0.5, 0.0004, "+0.20 [-0.10, +0.50]"),  # jobs differ by more than the prompts of these
    ],
)
def test_a_difference_has_stars_only_where_its_interval_excludes_0(low: float, high: float, p: float, expected: str):
    reward = {"mean": 0.2, "low": low, "high": high}
    cell = {"task": "t", "method": "iro", "rows": 1, "over": "base", "over_rows": 1, "reward": reward, "p": p}
    assert gains({"comparisons": [cell]}).splitlines()[-1] == f"| t, 1 | {expected} |"


def spent(task: str, seed: int, method: str, base_tokens: int, **fields: Any) -> dict[str, Any]:
    return {"task": task, "seed": seed, "method": method, "base_tokens": base_tokens, "reward_calls": 1} | fields


def budget_cells(content: dict[str, Any]) -> dict[str, list[str]]:
    """By method, the cells behind its number of rows."""
    lines = [line.strip("| ").split(" | ") for line in budgets(content).splitlines()[2:]]
    return {name: [cell.strip() for cell in cells] for name, _, *cells in lines}


def test_what_an_answer_takes_is_a_mean_over_tasks_of_means_over_seeds() -> None:
    pieces = [("once", 0, 10), ("thrice", 0, 30), ("thrice", 1, 40), ("thrice", 2, 50)]
    rows = [
        spent(task, seed, method, tokens, rows=1, seconds=2.0 * tokens, rewards=[0.0, 1.0])
        for method in ("iro", "static_bias", "vas")
        for task, seed, tokens in pieces
        if method != "vas" or seed == 1
    ]
    jobs = [
        {"task": task, "seed": seed, "base_tokens": 100 * tokens, "reward_calls": 1} for task, seed, tokens in pieces
    ]
    tuning = [spent("thrice", 1, "vas", 7), *(spent(task, seed, "static_bias", 5) for task, seed, _ in pieces)]
    content = {"rows": rows, "training": jobs, "tuning": tuning}
    assert budget_cells(content) == {
        "iro": ["25", "25.00", "1.0", "2500", "1"],
        "static_bias": ["25", "25.00", "1.0", "5", "1"],  # it is not recorded what a job's first bias took
        "vas (1 of 2 tasks)": ["40", "40.00", "1.0", "4007", "2"],  # of its own piece
    }
    content["training"] = [job | {"first_bias": {"base_tokens": 20, "reward_calls": 2}} for job in jobs]
    assert budget_cells(content)["static_bias"][-2:] == ["25", "3"]


def test_a_line_of_all_rows_has_the_length_of_answers_and_the_share_that_ends() -> None:
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75}
    measured = {"perplexity": 10.0, "distinct_2": 0.9, "kl": None, "base_tokens": 80.0}
    rows = [
        {"task": "t", "method": "iro", "rows": 4, "seed": seed, "length": length, "finished": finished} | measured
        for seed, length, finished in ((0, 20.0, 1.0), (1, 41.0, 0.5))
    ]
    cell = {"task": "t", "method": "iro", "rows": 4, "reward": interval, "judge": interval}
    (line,) = rewards({"rows": rows, "intervals": [cell]}).splitlines()[2:]
    assert line == "| t | iro | 4 | 0.50 [0.25, 0.75] | 0.50 | 10.0 | 0.90 |  | 30.5 | 0.75 | 80 |"
