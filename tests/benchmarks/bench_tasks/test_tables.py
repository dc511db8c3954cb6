"""The table of rewards in the README."""

from __future__ import annotations

from typing import Any

from benchmarks.bench_tasks.tables import short


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
