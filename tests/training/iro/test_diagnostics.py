"""How good value functions are, and how sure a mean of few samples is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from training.iro.diagnostics import diagnose, mean_and_error, samples_to_detect
from training.iro.fit import Graded, Scale, Shards

PROMPTS, DRAWS, TOKENS = 20, 8, 8


class Drawn(Shards):
    """A shard of each policy's draws for the same prompts."""

    def __init__(self, shards: Sequence[Graded]) -> None:
        source: object = None  # they are not read from disk
        super().__init__(source, [("", "")] * len(shards), Scale())  # type: ignore[arg-type]
        self.shards = shards

    def graded(self, index: int) -> Graded:
        return self.shards[index]


def draws(token: int, mean_reward: float) -> Graded:
    """Of a policy that writes nothing but ``token``: rewards do not depend on the text."""
    count = PROMPTS * DRAWS
    rewards = np.random.default_rng(token).normal(mean_reward, 1, count)
    prompt_R = torch.arange(PROMPTS).repeat_interleave(DRAWS)
    rewards_R, weights_R = torch.tensor(rewards).float(), torch.full((count,), 1 / DRAWS)
    return Graded([[token] * TOKENS] * count, prompt_R, rewards_R, weights_R, NotImplemented, list(range(count)))


def newest_token(graded: Graded) -> Tensor:
    return torch.tensor([float(graded.tokens[row][0]) for row in graded.row_N])


def test_a_value_that_tells_policies_apart_and_nothing_else_has_no_correlation() -> None:
    frozen, tilted = draws(0, 0.0), draws(1, 3.0)
    for shards in ([frozen], [tilted], [frozen, tilted]):
        overall = diagnose(Drawn(shards), newest_token, newest_token)["overall"]
        assert math.isnan(overall["correlation"]) and math.isnan(overall["stack_correlation"])


def test_a_correlation_of_two_policies_draws_is_that_within_each() -> None:
    frozen, tilted = draws(0, 0.0), draws(1, 3.0)

    def value(graded: Graded) -> Tensor:
        return graded.rewards_R[graded.row_N] + 5 * newest_token(graded)

    assert diagnose(Drawn([frozen, tilted]), value, value)["overall"]["correlation"] == pytest.approx(1)


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
