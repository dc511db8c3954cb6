"""Ours by value with the most rows beside searches without a tilt, of as many rows: a table of the documents."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.bench_tasks.measure import interval_of_jobs, lines_by_seed
from benchmarks.bench_tasks.tables import number_of_seeds
from benchmarks.bench_tasks.verdicts import verdict_of
from benchmarks.tables import table
from iro_server import JsonObject

SEARCHES = ("iro_search", "blockwise", "smc", "dvts")


def over_searches(content: JsonObject) -> str:
    """By task, the mean paired difference of rewards from each search on the seeds that both have, and its verdict."""
    rows = content["rows"]
    most = max(row["rows"] for row in rows if row["method"] == "iro")
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        ours = lines_by_seed(rows, task, "iro", most)
        by_search = [lines_by_seed(rows, task, search, most) for search in SEARCHES]
        seeds = max(len(ours.keys() & search.keys()) for search in by_search)
        if seeds:
            lines.append([f"{task} ({number_of_seeds(seeds)})", *(difference(ours, search) for search in by_search)])
    return table(["task", *(f"less {search}" for search in SEARCHES)], lines)


def difference(ours: dict[int, Any], rival: dict[int, Any]) -> str:
    shared = [seed for seed in ours if seed in rival]
    if not shared:
        return ""
    paired_SP = np.array([ours[seed]["rewards"] for seed in shared]) - [rival[seed]["rewards"] for seed in shared]
    if not paired_SP.any():
        return "equal"
    reward = interval_of_jobs(paired_SP)
    return f"{reward['mean']:+.3f}, {verdict_of(reward)}"
