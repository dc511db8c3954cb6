"""Areas under frontiers, judge against reward, and the text beside the frozen model's, on numbers made up here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.bench_tasks.areas import Point, areas_by_tokens, best_so_far, mean_reward, outermost_tasks
from benchmarks.bench_tasks.judges import judge_by_reward, judge_loss
from benchmarks.bench_tasks.searches import over_searches
from benchmarks.bench_tasks.tables import text_changes


def row(method: str, rows: int, reward: float, base_tokens: float, seed: int = 0, **fields: Any) -> dict[str, Any]:
    usual = {"task": "t", "judge": reward, "judges": [reward] * 2, "perplexity": 10.0, "distinct_2": 0.9}
    rewards = [reward - 0.1, reward + 0.1]
    return usual | {
        "method": method, "rows": rows, "seed": seed, "base_tokens": base_tokens, "reward": reward, "rewards": rewards,
        **fields,
    }  # fmt: skip


def point(cost: float, reward: float) -> Point:
    return Point(cost, np.array([reward]))


def test_an_area_is_the_mean_of_a_line_between_its_points_and_level_beyond_them() -> None:
    frozen = point(0.0, 1.0)
    assert mean_reward([frozen, point(2.0, 3.0)], frozen, 4.0) == pytest.approx((2 + 3) / 2)
    assert mean_reward([point(1.0, 5.0)], frozen, 4.0) == pytest.approx((1 * 1 + 3 * 5) / 4)
    assert mean_reward([frozen, point(8.0, 9.0)], frozen, 4.0) == pytest.approx(3.0)  # half of the way up
    assert mean_reward([point(-3.0, 2.0)], frozen, 4.0) == pytest.approx(2.0)


def test_more_that_earns_less_leaves_a_frontier_level() -> None:
    (frontier,) = best_so_far([[point(0.0, 1.0), point(1.0, 3.0), point(2.0, 2.0)]])
    assert [float(each.rewards_P[0]) for each in frontier] == [1.0, 3.0, 3.0]


def frontier_rows(ours: tuple[float, float], seed: int = 0) -> list[dict[str, Any]]:
    """Best-of-n rises from 1 to 3 over a tenfold of tokens; ours has these rewards at as many."""
    rivals = [row("base", 1, 1.0, 10, seed), row("best_of_n", 16, 3.0, 100, seed)]
    return [*rivals, row("iro", 1, ours[0], 10, seed), row("iro", 16, ours[1], 100, seed)]


def test_a_methods_area_is_taken_between_the_tokens_of_the_frozen_model_and_of_best_of_n() -> None:
    content = {"rows": [*frontier_rows((2.0, 4.0)), *frontier_rows((1.0, 2.0), seed=1)]}
    best_of_n = areas_by_tokens(content, "t", "best_of_n")
    assert {seed: area.mean() for seed, area in best_of_n.items()} == pytest.approx({0: 2.0, 1: 2.0})
    ours = areas_by_tokens(content, "t", "iro")
    assert {seed: area.mean() for seed, area in ours.items()} == pytest.approx({0: 3.0, 1: 1.5})
    assert ours[0][1] - ours[0][0] == pytest.approx(0.2)
    assert areas_by_tokens(content, "t", "smc") == {}


@pytest.mark.parametrize(("ours", "outermost"), [((2.0, 2.1), ["t"]), ((1.0, 2.9), [])])
def test_ours_is_outermost_where_its_area_is_above_every_rivals(
    ours: tuple[float, float], outermost: list[str]
) -> None:
    assert outermost_tasks({"rows": frontier_rows(ours)}, "iro") == outermost


def test_a_job_is_judged_by_what_it_serves() -> None:
    rows = [row("base", 1, 0.5, 10, judge=0.4), row("iro", 1, 0.7, 10, judge=0.8), row("iro", 4, 0.9, 40, judge=0.6)]
    job = {"task": "t", "seed": 0, "improved": True, "served_rows": 4}
    content = {"rows": rows, "jobs": [job]}
    assert judge_loss(content, job) == pytest.approx(0.25)
    assert judge_loss(content, job | {"served_rows": 1}) == 0
    assert judge_loss(content, job | {"improved": False}) == pytest.approx(0.5)
    line = "| t (0 of 1 jobs within 2 %) | 0.40 (0.50) | 0.80 (0.70) | 0.60 (0.90) | 25 % |"
    assert judge_by_reward(content).splitlines()[-1] == line


def test_searches_are_compared_where_they_were_run_by_seed() -> None:
    ours = [row("iro", 16, reward, 100, seed) for seed, reward in enumerate((0.9, 0.7))]
    searches = [row("iro_search", 16, 0.4, 100, seed=1), row("smc", 16, 0.7, 100, seed=1)]
    assert (
        over_searches({"rows": [*ours, *searches]}).splitlines()[-1] == "| t (1 seed) | +0.300, above |  | equal |  |"
    )


def test_text_is_compared_with_the_frozen_models_seed_by_seed() -> None:
    frozen = [row("base", 1, 0.5, 10, seed, perplexity=ppl) for seed, ppl in enumerate((10.0, 20.0))]
    ours = [row("iro", 1, 0.5, 10, seed, perplexity=ppl, distinct_2=0.9) for seed, ppl in enumerate((11.0, 26.0))]
    assert text_changes({"rows": [*frozen, *ours]}).splitlines()[-1] == "| t | +20.0 % | equal |"
