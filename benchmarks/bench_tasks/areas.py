"""How far out the frontiers of reward against a cost are: tables of the documents from results of ``bench.tasks``.

A method's frontier is the best reward that it reaches at up to a cost: linear between its numbers of rows in the
logarithm of base tokens, or between strengths of its tilt in nats, level where more earns no more and beyond its last
point. Below its first point it has the reward of the frozen model's one row. Its area is divided by the distance of the
limits between which it is taken: a mean reward over these costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.integrate import trapezoid

from benchmarks.bench_tasks.measure import interval_of_jobs, lines_by_seed
from benchmarks.bench_tasks.tables import number_of_seeds
from benchmarks.bench_tasks.verdicts import verdict_of
from benchmarks.tables import interval_text, table
from iro_server import JsonObject

ONE_ROW = {"iro_best_of_n": "iro", "iro_by_reward": "iro", "iro_by_chunk": "iro", "iro_samples": "iro"} | dict.fromkeys(
    ("best_of_n", "blockwise", "smc", "dvts", "iro_search"), "base"
)
"""Of methods of several rows: the method that one row of it is."""
ALIGNED = ("iro", "iro_by_reward", "iro_by_chunk", "iro_samples", "iro_best_of_n")
OURS = ("iro", "iro_best_of_n")
AreasBySeed = dict[int, np.ndarray]
"""[prompts] of each seed."""


class Point(NamedTuple):
    cost: float
    rewards_P: np.ndarray


Frontier = list[Point]


def areas(content: JsonObject) -> str:
    """The area of each method and task, of the seeds that it has, in the logarithm of base tokens between those of one
    row of the frozen model and those of best-of-n with the most rows."""
    tasks, lines = tasks_of(content), []
    for method in methods_of(content):
        cells = [areas_by_tokens(content, task, method) for task in tasks]
        label = method
        if method in OURS:
            label += f" (outermost on {len(outermost_tasks(content, method))} of {len(tasks)})"
        lines.append([label, *(interval_text(interval(by_seed)) if by_seed else "" for by_seed in cells)])
    return table(["method", *tasks], lines)


def area_differences(content: JsonObject) -> str:
    """Of ours: the paired difference from the rival whose area is the largest beside it."""
    lines = []
    for task in tasks_of(content):
        for method in OURS:
            rival, seeds, difference = smallest_difference(content, task, method)
            label = f"{task}, {method} ({number_of_seeds(seeds)})"
            lines.append([label, rival, interval_text(difference, "+", 3), verdict_of(difference)])
    return table(["task, method", "the rival that is furthest out", "area less the rival's", "verdict"], lines)


def areas_by_nats(content: JsonObject) -> str:
    """Of one row of methods whose tilt was measured at several strengths: the area of ours less a rival's, in nats from
    the frozen model up to those of the further one at full strength, and of the nearer one; empty where that one is the
    frozen model."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in content["tilts"] if row["tilted"]):
        base = {row["seed"]: nats_of(row) for row in content["rows"] if (row["task"], row["method"]) == (task, "base")}
        by_method = frontiers_by_nats(content, task, base)
        ours = by_method.pop("iro")
        for rival, frontiers in by_method.items():
            label = f"{task} ({number_of_seeds(len(ours.keys() & frontiers.keys()))})"
            cells = [difference_text(base, ours, frontiers, limit) for limit in (max, min)]
            lines.append([label, rival, *cells])
    return table(["task", "rival", "up to the further one's nats", "up to the nearer one's"], lines)


def tasks_of(content: JsonObject) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in content["rows"]))


def methods_of(content: JsonObject) -> list[str]:
    """All but the one row of the frozen model, which is a point of best-of-n."""
    return [method for method in dict.fromkeys(row["method"] for row in content["rows"]) if method != "base"]


def outermost_tasks(content: JsonObject, method: str) -> list[str]:
    """Where the area is above those of all rivals, on the seeds that each has with the method."""
    return [task for task in tasks_of(content) if smallest_difference(content, task, method)[2]["mean"] > 0]


def smallest_difference(content: JsonObject, task: str, method: str) -> tuple[str, int, dict[str, float]]:
    """The rival, the number of seeds that both have, and the paired difference of areas."""
    ours = areas_by_tokens(content, task, method)
    rivals = {rival: areas_by_tokens(content, task, rival) for rival in methods_of(content) if rival not in ALIGNED}
    differences = [
        (rival, len(shared), paired_difference(ours, by_seed))
        for rival, by_seed in rivals.items()
        if (shared := ours.keys() & by_seed.keys())
    ]
    return min(differences, key=lambda difference: difference[2]["mean"])


def paired_difference(first: AreasBySeed, second: AreasBySeed) -> dict[str, float]:
    """On the seeds that both have."""
    return interval({seed: first[seed] - second[seed] for seed in first if seed in second})


def interval(by_seed: AreasBySeed) -> dict[str, float]:
    return interval_of_jobs(np.array(list(by_seed.values())))


def areas_by_tokens(content: JsonObject, task: str, method: str) -> AreasBySeed:
    """Of the seeds that have all numbers of rows of the method; empty where it was not run."""
    rows = content["rows"]
    counts = sorted({row["rows"] for row in rows if (row["task"], row["method"]) == (task, method)})
    most = max(row["rows"] for row in rows if (row["task"], row["method"]) == (task, "best_of_n"))
    single = min(row["rows"] for row in rows if row["method"] == "base")
    settings = [(method, count) for count in counts]
    if settings and method in ONE_ROW:
        settings = [(ONE_ROW[method], single), *settings]
    lines = [lines_by_seed(rows, task, *setting) for setting in settings]
    if not lines:
        return {}
    base, best_of_n = (lines_by_seed(rows, task, *setting) for setting in (("base", single), ("best_of_n", most)))
    seeds = [seed for seed in lines[0] if all(seed in line for line in lines)]
    frontiers = best_so_far([[point_of(line[seed]) for line in lines] for seed in seeds])
    return {
        seed: mean_reward(frontier, point_of(base[seed]), point_of(best_of_n[seed]).cost)
        for seed, frontier in zip(seeds, frontiers, strict=True)
    }


def point_of(row: JsonObject) -> Point:
    return Point(math.log(row["base_tokens"]), np.array(row["rewards"]))


def frontiers_by_nats(content: JsonObject, task: str, base: dict[int, Point]) -> dict[str, dict[int, Frontier]]:
    """By method and seed, of those whose tilt was measured at several strengths: from the frozen model to the tilt."""
    scaled = [row for row in content["tilts"] if row["tilted"] and row["task"] == task]
    by_method: dict[str, dict[int, Frontier]] = {}
    for method, seed in sorted({(row["method"], row["seed"]) for row in scaled}):
        key = (task, method, seed)
        strengths = [row for row in scaled if (row["task"], row["method"], row["seed"]) == key]
        full = [row for row in content["rows"] if (row["task"], row["method"], row["seed"]) == key]
        tilts = [*sorted(strengths, key=lambda row: row["strength"]), min(full, key=lambda row: row["rows"])]
        by_method.setdefault(method, {})[seed] = [base[seed], *map(nats_of, tilts)]
    return by_method


def difference_text(
    base: dict[int, Point],
    ours: dict[int, Frontier],
    rival: dict[int, Frontier],
    limit: Callable[[float, float], float],
) -> str:
    """Area of ours less the rival's with its verdict, up to the ``limit`` of their nats at full strength, on the seeds
    that both have; empty where that is no distance."""
    seeds = [seed for seed in ours if seed in rival]
    nats = {seed: limit(ours[seed][-1].cost, rival[seed][-1].cost) for seed in seeds}
    if any(nats[seed] <= base[seed].cost for seed in seeds):
        return ""
    ours_S, rival_S = (
        [
            mean_reward(frontier, base[seed], nats[seed])
            for seed, frontier in zip(seeds, best_so_far([frontiers[seed] for seed in seeds]), strict=True)
        ]
        for frontiers in (ours, rival)
    )
    difference = interval_of_jobs(np.array(ours_S) - np.array(rival_S))
    return f"{interval_text(difference, '+')}, {verdict_of(difference)}"


def nats_of(row: JsonObject) -> Point:
    return Point(row["kl"], np.array(row["rewards"]))


def best_so_far(frontiers: Sequence[Frontier]) -> list[Frontier]:
    """At each cost the rewards of the point whose mean reward over seeds is the highest up to there."""
    means_N = np.mean([[point.rewards_P.mean() for point in frontier] for frontier in frontiers], axis=0)
    best_N = [int(np.argmax(means_N[: place + 1])) for place in range(len(means_N))]
    return [
        [Point(point.cost, frontier[best].rewards_P) for point, best in zip(frontier, best_N, strict=True)]
        for frontier in frontiers
    ]


def mean_reward(frontier: Frontier, frozen: Point, high: float) -> np.ndarray:
    """[prompts], over costs from that of ``frozen``, whose rewards hold below the first point, to ``high``."""
    costs, rewards = zip(*frontier, strict=True)
    start = float(np.clip(costs[0], frozen.cost, high))
    knots = [start, *(cost for cost in costs if start < cost < high), high]
    rewards_PK = [np.interp(knots, costs, of_prompt) for of_prompt in np.transpose(rewards)]
    area_P = trapezoid(rewards_PK, knots) + frozen.rewards_P * (start - frozen.cost)
    return np.asarray(area_P / (high - frozen.cost))
