"""Intervals over few seeds: how often they cover the true mean, and how they differ from the bootstrap alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.quality_report import interval, interval_of_seeds, widened
from iro_server import JsonObject

SEEDS, PROMPTS, SAMPLES = 5, 32, 400
Interval = Callable[[np.ndarray, int], dict[str, float]]


def coverage(estimated: Interval, between: float) -> float:
    """Share of the samples whose interval covers the mean 0: prompts differ by a standard deviation of 1, and seeds by
    ``between``."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(SAMPLES):
        values_SP = rng.normal(0, between, (SEEDS, 1)) + rng.normal(0, 1, (SEEDS, PROMPTS))
        cell = estimated(values_SP, 100)
        covered += cell["low"] <= 0 <= cell["high"]
    return covered / SAMPLES


@pytest.mark.parametrize("between", [0.0, 0.2, 1.0])
def test_the_interval_of_five_seeds_covers_the_mean_however_much_seeds_differ(between: float) -> None:
    assert coverage(interval_of_seeds, between) >= 0.93


def test_the_bootstrap_alone_covers_less_where_seeds_differ() -> None:
    assert coverage(interval, 1.0) < 0.88


def test_the_interval_is_students_where_seeds_differ_and_the_bootstraps_where_they_do_not() -> None:
    differing = np.repeat([[0.0], [0.5], [1.0], [1.5], [2.0]], PROMPTS, axis=1)
    student = ttest_1samp([0, 0.5, 1, 1.5, 2], 0).confidence_interval(0.95)
    cell = interval_of_seeds(differing)
    assert (cell["mean"], cell["low"], cell["high"]) == pytest.approx((1.0, student.low, student.high))
    alike = np.tile([0.0, 1.0], (SEEDS, PROMPTS // 2))
    assert interval_of_seeds(alike) == interval(alike)
    of_one_seed = np.random.default_rng(0).normal(size=(1, PROMPTS))
    assert interval_of_seeds(of_one_seed) == interval(of_one_seed)


def test_a_recorded_file_is_widened_by_its_gains_of_each_seed() -> None:
    by_seed = {"IRO-1": [1.0, 1.2, 0.8, 1.1, 0.9], "IRO-2": [2.0, 0.4, 1.8, 3.1, 0.2]}
    narrow: JsonObject = {"pick": "reward", "low": 1.0, "high": 1.0}
    gains = [{"method": name, "mean": float(np.mean(row)), "by_seed": row} | narrow for name, row in by_seed.items()]
    other_pick = [gain | {"pick": "value"} for gain in gains]
    step = {"method": "IRO-2", "over": "IRO-1", "mean": 0.5} | narrow | {"low": 0.4, "high": 0.6}
    content = {"gains": gains + other_pick, "steps": [step], "controls": [], "judges": []}
    wide = widened(content)
    student = ttest_1samp(np.subtract(by_seed["IRO-2"], by_seed["IRO-1"]), 0).confidence_interval(0.95)
    assert (wide["steps"][0]["low"], wide["steps"][0]["high"]) == pytest.approx((student.low, student.high))
    assert not next(check for check in wide["checks"] if check["name"].startswith("IRO-2 less IRO-1"))["holds"]
