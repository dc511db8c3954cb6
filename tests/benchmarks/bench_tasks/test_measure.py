"""What answers are measured by, and paired differences of methods and of iterations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.bench_tasks.answers import Answer
from benchmarks.bench_tasks.measure import comparisons, iteration_gains, qualities, sign_flip_p


def row(method: str, seed: int, rewards: list[float], rows: int = 1) -> dict[str, Any]:
    return {"task": "t", "method": method, "rows": rows, "seed": seed, "rewards": rewards, "judges": rewards}


def test_a_paired_difference_beyond_chance_is_told_from_chance() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.normal(0, 5, size=(3, 20))  # prompts differ far more than methods do
    noise = rng.normal(0, 0.1, size=(2, 3, 20))
    rows = [
        *(row("base", seed, list(prompts[seed])) for seed in range(3)),
        *(row("iro", seed, list(prompts[seed] + 0.2 + noise[0, seed]), 4) for seed in range(3)),
        *(row("blockwise", seed, list(prompts[seed] + noise[1, seed] - noise[1].mean()), 4) for seed in range(2)),
    ]
    iro, blockwise = comparisons(rows)
    assert (iro["method"], iro["over"], iro["seeds"]) == ("iro", "base", 3)
    assert iro["reward"]["mean"] == pytest.approx(0.2, abs=0.05)
    assert iro["reward"]["low"] > 0 and iro["p"] < 0.001
    assert blockwise["seeds"] == 2 and blockwise["reward"]["low"] < 0 < blockwise["reward"]["high"]
    assert blockwise["p"] > 0.05


def test_pairs_are_of_the_same_seed() -> None:
    """A method that was run at the second seed alone has other prompts than the first seed of another."""
    rows = [
        *(row("base", seed, [10.0 * seed, 10.0 * seed + 1]) for seed in range(2)),
        row("vas", 1, [12.0, 13.0]),
        *(row("iro", seed, [10.0 * seed + 5, 10.0 * seed + 6]) for seed in range(2)),
    ]
    of_pair = {(cell["method"], cell["over"]): cell for cell in comparisons(rows)}
    assert of_pair["vas", "base"]["reward"]["mean"] == 2 and of_pair["vas", "base"]["seeds"] == 1
    assert of_pair["iro", "base"]["reward"]["mean"] == 5 and of_pair["iro", "base"]["seeds"] == 2
    assert of_pair["iro", "vas"]["reward"]["mean"] == 3 and of_pair["iro", "vas"]["seeds"] == 1


def test_equal_rewards_have_p_1() -> None:
    assert sign_flip_p(np.zeros((2, 3))) == 1
    assert sign_flip_p(np.array([[0.7]])) == 1  # either sign is as far from 0
    # 2^4 sign patterns, two of which have a mean as far from 0
    assert sign_flip_p(np.array([[1.0, 2.0], [3.0, 4.0]])) == pytest.approx(2 / 16)


def test_one_prompt_of_one_seed_is_compared() -> None:
    (of_iro,) = comparisons([row("base", 0, [0.2]), row("iro", 0, [0.9])])
    assert of_iro["reward"]["mean"] == pytest.approx(0.7) and of_iro["p"] == 1


def test_of_four_jobs_the_interval_reaches_as_far_as_students_and_of_three_the_bootstrap_decides() -> None:
    gains = [1.0, 0.6, 0.1, 0.1]
    of_seeds = [("base", 0.0, seed) for seed in range(4)] + [("iro", gain, seed) for seed, gain in enumerate(gains)]
    rows = [row(method, seed, [reward] * 8) for method, reward, seed in of_seeds]
    (of_four,), (of_three,) = (comparisons([r for r in rows if r["seed"] < seeds]) for seeds in (4, 3))
    student = ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (of_four["reward"]["low"], of_four["reward"]["high"]) == pytest.approx((student.low, student.high))
    assert of_four["reward"]["low"] < 0 and of_three["reward"]["low"] == pytest.approx(0.1)


def test_a_method_is_compared_once_with_a_rival_at_equal_rows() -> None:
    """Of 16 rows, best-of-n is both the rival of as many rows and the one of 16."""
    rows = [row(method, 0, [1.0, 2.0], count) for method in ("iro", "best_of_n") for count in (4, 16)]
    of_iro = [cell for cell in comparisons(rows) if cell["method"] == "iro"]
    compared = [(cell["rows"], cell["over"], cell["over_rows"]) for cell in of_iro]
    assert compared == [(4, "best_of_n", 4), (4, "best_of_n", 16), (16, "best_of_n", 16)]


def test_iterations_are_paired_with_the_first_on_the_seeds_that_have_both() -> None:
    rewards = {(1, 0): [1.0, 2.0], (2, 0): [2.0, 4.0], (2, 1): [9.0, 9.0], (3, 1): [9.0, 9.0]}
    rows = [row("iro", seed, values) | {"iteration": iteration} for (iteration, seed), values in rewards.items()]
    (gain,) = iteration_gains(rows)  # the second seed has no first iteration
    assert (gain["iteration"], gain["seeds"], gain["reward"]["mean"]) == (2, 1, 1.5)


def test_perplexity_is_over_all_tokens_and_kl_only_where_every_answer_has_one() -> None:
    short, long = (
        Answer(tokens, [-logprob] * len(tokens), finished, base_tokens=8, kl=1.0)
        for tokens, logprob, finished in (([1], 3.0, True), ([1, 2, 3], 1.0, False))
    )
    measured = qualities([short, long])
    assert measured["perplexity"] == pytest.approx(np.exp(6 / 4))
    assert (measured["kl"], measured["length"], measured["finished"]) == (1.0, 2.0, 0.5)
    assert qualities([short, Answer([1], [-1.0], True, base_tokens=1)])["kl"] is None
