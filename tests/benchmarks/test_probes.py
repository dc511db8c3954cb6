"""Probes of the frozen model's states."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.probes import EMBEDDINGS, correlation, fit_network, fit_ridge, frequencies, picked, summary

PROMPTS, SAMPLES, WIDTH = 60, 8, 5


@pytest.fixture
def states() -> np.ndarray:
    """[prompts, samples, width], with a part that a prompt's samples share: it tells nothing within a prompt."""
    rng = np.random.default_rng(0)
    own, shared = rng.normal(size=(PROMPTS, SAMPLES, WIDTH)), 10 * rng.normal(size=(PROMPTS, 1, WIDTH))
    return np.asarray(own + shared)


def test_a_probe_learns_what_tells_the_samples_of_a_prompt_apart(states: np.ndarray) -> None:
    direction = np.arange(1.0, WIDTH + 1)
    rewards = states @ direction
    for predict in (fit_ridge(states[:40], rewards[:40])[0], fit_network(states[:40], rewards[:40], seed=0)):
        assert correlation(predict(states[40:]), rewards[40:]) > 0.9
    predict, quality = fit_ridge(states[:40], rewards[:40])
    assert quality > 0.99 and picked(predict(states[40:]), rewards[40:]) == rewards[40:].max(1).tolist()


def test_a_probe_of_rewards_that_no_state_tells_is_near_zero(states: np.ndarray) -> None:
    rewards = np.random.default_rng(1).normal(size=(PROMPTS, SAMPLES))
    predict, _ = fit_ridge(states[:40], rewards[:40])
    assert abs(correlation(predict(states[40:]), rewards[40:])) < 0.2


def test_correlations_are_within_prompts_and_picks_are_the_first_of_the_best() -> None:
    rewards = np.array([[0.0, 1.0, 1.0], [5.0, 5.0, 5.0]])
    assert correlation(np.array([[0.0, 1.0, 1.0], [9.0, 9.0, 9.0]]), rewards) == pytest.approx(1.0)
    assert correlation(np.ones((2, 3)), rewards) == 0.0
    assert picked(np.array([[0.0, 2.0, 2.0], [1.0, 0.0, 0.0]]), rewards) == [1.0, 5.0]
    assert frequencies(["7\n8 + 1 = 9", " 7", "8", "7\n"]) == [3, 3, 1, 3]


def test_the_summary_is_over_seeds_and_prompts() -> None:
    rows = [
        {
            "task": "arithmetic",
            "seed": seed,
            "chosen": "layer 1, last",
            "picks": {"one sample": [0.0, 1.0], EMBEDDINGS: [0.0, 0.0], "layer 1, last": [float(seed), 1.0]},
            "correlations": {EMBEDDINGS: 0.5 * seed, "layer 1, last": 0.25 + 0.5 * seed},
        }
        for seed in (0, 1)
    ]
    (cell,) = summary(rows)
    assert cell["probes"]["layer 1, last"]["reward"]["mean"] == 0.75
    assert cell["probes"]["layer 1, last"]["correlation"]["mean"] == 0.5
    assert cell["probes"]["layer 1, last"]["difference"] == {"mean": 0.25, "low": 0.25, "high": 0.25, "seeds": 2}
    assert "correlation" not in cell["probes"]["one sample"]
