"""How sure a mean of few samples is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.iro.diagnostics import mean_and_error, samples_to_detect


def test_a_standard_error_is_that_of_a_sample_whose_mean_is_unknown() -> None:
    assert mean_and_error([0.0, 2.0]) == (1.0, 1.0)  # a deviation of the square root of 2, over that of 2
    assert mean_and_error([0.0, math.nan, 2.0]) == (1.0, 1.0)
    assert mean_and_error([3.0])[0] == 3.0 and math.isnan(mean_and_error([3.0])[1])


def test_so_many_prompts_tell_a_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    needed = samples_to_detect((0.3 + rng.normal(size=100_000)).tolist())
    assert needed == pytest.approx(87, abs=2)
    draws = 0.3 + rng.normal(size=(4000, needed))
    shown = np.abs(draws.mean(1)) > 1.96 * draws.std(1, ddof=1) / np.sqrt(needed)
    assert shown.mean() == pytest.approx(0.8, abs=0.03)
    assert samples_to_detect([0.5]) is None
