"""Areas under frontiers, judge against reward, and the text beside the frozen model's, on numbers made up here; and
that the documents count what the results say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.bench_tasks.areas import (
    Point,
    area_differences,
    areas_by_nats,
    areas_by_tokens,
    best_so_far,
    mean_reward,
    outermost_tasks,
)
from benchmarks.bench_tasks.judges import NEAR_BEST, judge_by_reward, judge_loss
from benchmarks.bench_tasks.searches import over_searches
from benchmarks.bench_tasks.tables import text_changes
from benchmarks.record import read
from benchmarks.redraw import ROOT


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


def test_of_two_steps_the_earlier_and_the_higher_have_the_larger_area() -> None:
    """A step from r to R at cost c has (r c + R (4 - c)) / 4 over costs 0 to 4."""
    for start, height in ((1.0, 5.0), (1.0, 8.0), (3.5, 8.0)):
        step = mean_reward([point(start, height)], point(0.0, 1.0), 4.0)
        assert step == pytest.approx((start + height * (4 - start)) / 4)


SEVERAL_METHODS = [
    *(row("base", 1, 0.0, 1.0, seed) for seed in range(2)),
    *(row("best_of_n", 4, 4.0, 4.0, seed) for seed in range(2)),
    *(row("best_of_n", 16, 8.0, 16.0, seed) for seed in range(2)),
    *(row("iro", rows, 6.0, rows, seed) for seed in range(2) for rows in (1, 4)),
    *(row("iro_best_of_n", 4, 8.0, 4.0, seed) for seed in range(2)),
    row("vas", 1, 6.0, 4.0, seed=1),
    row("blockwise", 16, 14.0, 16.0, seed=1),
]


def test_several_rows_go_on_from_the_one_row_of_the_same_samples() -> None:
    areas = {
        method: {seed: area.mean() for seed, area in areas_by_tokens({"rows": SEVERAL_METHODS}, "t", method).items()}
        for method in ("best_of_n", "iro", "iro_best_of_n", "vas", "blockwise")
    }
    assert areas == {
        "best_of_n": pytest.approx({0: 4.0, 1: 4.0}),  # 0, 4 and 8 at equal distances of log tokens
        "iro": pytest.approx({0: 6.0, 1: 6.0}),
        "iro_best_of_n": pytest.approx({0: 7.5, 1: 7.5}),  # 6, 8 and level
        "vas": pytest.approx({1: 3.0}),  # 0 for half of the costs, then 6
        "blockwise": pytest.approx({1: 7.0}),
    }


def test_the_rival_with_the_smallest_difference_decides_on_the_seeds_that_it_shares() -> None:
    assert area_differences({"rows": SEVERAL_METHODS}).splitlines()[2:] == [
        "| t, iro (1 seed) | blockwise | -1.000 [-1.000, -1.000] | below |",
        "| t, iro_best_of_n (1 seed) | blockwise | +0.500 [+0.500, +0.500] | above |",
    ]
    assert [outermost_tasks({"rows": SEVERAL_METHODS}, method) for method in ("iro", "iro_best_of_n")] == [[], ["t"]]


def test_areas_by_nats_are_up_to_the_further_and_up_to_the_nearer_tilt() -> None:
    """Lines from 0 at no nats: ours to 8 at 4 nats, a bias to 6 at 2 nats, and a bias that changes nothing."""
    methods = {"iro": (4.0, 8.0), "static_bias": (2.0, 6.0), "static_bias_refitted": (0.0, 0.0)}
    rows = [row("base", 1, 0.0, 1.0, kl=0.0)]
    rows += [row(method, 1, reward, 1.0, kl=kl) for method, (kl, reward) in methods.items()]
    tilts = [
        row(method, 1, reward / 2, 1.0, kl=kl / 2, strength=0.5, tilted=True)
        for method, (kl, reward) in methods.items()
    ]
    assert areas_by_nats({"rows": rows, "tilts": tilts}).splitlines()[2:] == [
        "| t (1 seed) | static_bias | -0.50 [-0.50, -0.50], below | -1.00 [-1.00, -1.00], below |",
        "| t (1 seed) | static_bias_refitted | +4.00 [+4.00, +4.00], above |  |",
    ]


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


def test_the_documents_count_the_tasks_and_jobs_of_the_results() -> None:
    content = read(ROOT / "results/bench.tasks/sharpened.json")
    by_value, by_grader = (len(outermost_tasks(content, method)) for method in ("iro", "iro_best_of_n"))
    jobs = content["jobs"]
    near = sum(judge_loss(content, job) <= NEAR_BEST for job in jobs)
    page, details = (
        " ".join((ROOT / "docs" / name).read_text().split()) for name in ("tasks.md", "tasks-in-detail.md")
    )
    assert f"outermost on {by_value} of 8 tasks without a grader, on {by_grader} with one" in page
    assert f"outermost on {by_value} of 8 tasks, by" in details
    for text in (page, details):
        assert f"{near} of {len(jobs)} jobs" in text


def test_one_row_is_inside_the_limits_that_the_document_states() -> None:
    rows = read(ROOT / "results/bench.tasks/sharpened.json")["rows"]
    one_row = {(row["method"], row["task"], row["seed"]): row for row in rows if row["rows"] == 1}
    ratios = {
        name: [one_row[key][name] / one_row["base", *key[1:]][name] for key in one_row if key[0] == "iro"]
        for name in ("perplexity", "distinct_2")
    }
    assert len(ratios["perplexity"]) == 40
    assert max(ratios["perplexity"]) <= 1.1 and min(ratios["distinct_2"]) >= 0.95
