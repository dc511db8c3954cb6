"""Verdicts of the table in docs/tasks.md."""

from __future__ import annotations

import pytest

from benchmarks.bench_tasks.verdicts import FROZEN, verdict, verdicts


def gain(over: str, rows: int, mean: float, error: float = 0.1):
    interval = {"mean": mean, "low": mean - error, "high": mean + error}
    return {"task": "t", "method": "iro", "rows": 1, "over": over, "over_rows": rows, "reward": interval}


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([gain("best_of_n", 16, 0.2)], "above"),
        ([gain("best_of_n", 16, 0.2), gain("tempered", 16, 0.05)], "indistinguishable"),
        ([gain("best_of_n", 16, 0.2), gain("tempered", 16, -0.2)], "below"),
        ([gain("best_of_n", 16, 0.2), gain("tempered", 1, -0.2), gain("static_bias", 16, -0.2)], "above"),
    ],
)
def test_the_strongest_rival_of_a_kind_and_of_so_many_rows_decides(gains, expected):
    assert verdict(gains, FROZEN, 16) == expected


def test_a_task_has_a_line_for_each_number_of_rows():
    rows = [
        {"task": "t", "method": method, "rows": count, "base_tokens": tokens}
        for method, count, tokens in (("iro", 1, 10.0), ("iro", 4, 40.0), ("iro", 16, 160.0), ("best_of_n", 16, 200.0))
    ]
    gains = [
        gain(over, over_rows, mean) | {"rows": count}
        for count in (1, 4)
        for over, over_rows, mean in (("best_of_n", count, 0.3), ("static_bias", count, 0.0), ("best_of_n", 16, -0.3))
    ]
    lines = verdicts({"rows": rows, "comparisons": gains}).splitlines()
    assert lines[2:] == [
        "| t | 1 | above | indistinguishable | below | 10, 200 |",
        "| t | 4 | above | indistinguishable | below | 40, 200 |",
    ]
