"""The table of rewards in the README, and paired differences."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.bench_tasks.tables import gains, short


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
