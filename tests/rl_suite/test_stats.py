"""Interval statistics: closed forms, and coverage where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import mannwhitneyu, ttest_1samp

from rl_suite.stats import Estimate, interval, iqm, mean, probability_of_improvement, profile, student


def test_iqm_drops_a_quarter_at_each_end_over_runs_and_tasks_together() -> None:
    scores = np.array([[0.0, 1, 2, 3], [4, 5, 6, 1000]])
    assert iqm(scores) == np.mean([2, 3, 4, 5])


@given(hnp.arrays(float, (4, 3), elements=st.floats(-5, 5)), hnp.arrays(float, (5, 3), elements=st.floats(-5, 5)))
def test_probability_of_improvement_is_mann_whitneys_and_complements(x: np.ndarray, y: np.ndarray) -> None:
    probability = probability_of_improvement(x, y)
    expected = np.mean([mannwhitneyu(a, b).statistic / 20 for a, b in zip(x.T, y.T, strict=True)])
    assert np.isclose(probability, expected)
    assert np.isclose(probability + probability_of_improvement(y, x), 1)


def test_a_profile_falls_from_one_to_zero_and_its_area_is_the_mean() -> None:
    scores = np.random.default_rng(0).random((5, 6))
    levels = np.linspace(0, 1, 20_001)
    shares = profile(levels)(scores)
    assert shares[0] == 1 and shares[-1] == 0 and np.all(np.diff(shares) <= 0)
    assert np.isclose(np.trapezoid(shares, levels), scores.mean(), atol=1e-4)


def test_runs_are_resampled_within_their_task_and_keep_their_curve() -> None:
    # Tasks far apart: mixing them would spread the mean; runs that are parallel curves: mixing steps would too.
    runs, steps = np.arange(3.0), np.arange(4.0)
    scores = 1000 * np.arange(2.0) + runs[:, None] + 10 * steps[:, None, None]
    estimate = interval(mean, scores, rng=np.random.default_rng(0))
    assert np.allclose(estimate.value, 501 + 10 * steps)
    assert np.allclose(estimate.high - estimate.low, (estimate.high - estimate.low)[0])
    assert 1 < (estimate.high - estimate.low)[0] < 2


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(200, 20, 2))
    covered = [
        low <= 0 <= high for _, low, high in (interval(mean, task_scores, rng=rng, draws=400) for task_scores in scores)
    ]
    assert 0.88 < np.mean(covered) < 0.99


def test_students_interval_of_a_mean_covers_the_truth_with_five_runs() -> None:
    scores = np.random.default_rng(4).normal(size=(2000, 5, 3))
    estimate = student(scores)
    assert 0.93 < np.mean((estimate.low <= 0) & (estimate.high >= 0)) < 0.97
    means = scores[0].mean(axis=1)
    expected = ttest_1samp(means, 0).confidence_interval(0.95)
    assert np.allclose([estimate.value[0], estimate.low[0], estimate.high[0]], [means.mean(), *expected])
    with pytest.raises(ValueError, match="finite"):
        student([[np.nan]])


def test_two_arrays_profiles_and_the_same_seed() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(1, 1, (5, 3)), rng.normal(0, 1, (7, 3))
    first, second = (interval(probability_of_improvement, x, y, rng=np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert 0.5 < first.low < first.value < first.high <= 1
    assert interval(profile([0.0, 1.0]), x, rng=rng).low.shape == (2,)
    assert f"{Estimate(*map(np.float64, (1, 0.5, 1.5))):.1f}" == "1.0 [0.5, 1.5]"


@pytest.mark.parametrize(("scores", "says"), [([], "shape"), ([[1.0, np.nan]], "finite"), ([1.0, 2.0], "runs, tasks")])
def test_bad_scores_say_what_to_change(scores: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        interval(mean, scores, rng=np.random.default_rng(0))
