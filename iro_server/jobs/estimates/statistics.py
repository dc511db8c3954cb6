"""Statistics of rewards by prompt: P prompts with up to K completions each. NaN: the grader gave no reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Rewards = Sequence[Sequence[float]]
RESAMPLES = 2000
EQUAL = 1e-9  # two rewards that differ by less, relative to the larger, are equal


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def gradable(rewards: Rewards) -> list[list[float]]:
    """The finite rewards of each prompt that has any."""
    finite = [[reward for reward in of_prompt if math.isfinite(reward)] for of_prompt in rewards]
    return [of_prompt for of_prompt in finite if of_prompt]


def all_equal(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= EQUAL * max(abs(max(values)), abs(min(values)))


def best_of(values: Sequence[float], n: int) -> float:
    """The expected maximum of ``n`` of the values, drawn without replacement: unbiased for n independent samples.

    Source: the weights C(i-1, n-1) / C(K, n) of the sorted values, as those of pass@k (Chen et al., 2021, eq. 1).
    """
    total = math.comb(len(values), n)
    return sum(value * math.comb(i, n - 1) / total for i, value in enumerate(sorted(values)))


def best_of_curve(rewards: Rewards) -> dict[int, float]:
    """The mean over prompts of ``best_of`` n, for n = 1, 2, 4, … up to the completions that each prompt has."""
    values = gradable(rewards)
    shortest = min(map(len, values), default=0)
    counts = [2**power for power in range(shortest.bit_length()) if 2**power <= shortest]
    return {n: float(np.mean([best_of(of_prompt, n) for of_prompt in values])) for n in counts}


def within_prompt_variance(rewards: Rewards) -> float:
    """The mean over prompts of the unbiased variance of their rewards; 0 where no prompt has two."""
    variances = [float(np.var(of_prompt, ddof=1)) for of_prompt in gradable(rewards) if len(of_prompt) > 1]
    return float(np.mean(variances)) if variances else 0.0


def gain(rewards: Rewards, n: int) -> Interval:
    """What the best of ``n`` completions gains over one, on average over prompts; the interval resamples prompts.

    A prompt with fewer than ``n`` gradable completions takes all that it has.
    """
    gains = np.array(
        [best_of(of_prompt, min(n, len(of_prompt))) - float(np.mean(of_prompt)) for of_prompt in gradable(rewards)]
    )
    picks = np.random.default_rng(0).integers(len(gains), size=(RESAMPLES, len(gains)))
    low, high = np.quantile(gains[picks].mean(1), (0.025, 0.975))
    return Interval(float(gains.mean()), float(low), float(high))


def equal_share(rewards: Rewards) -> float:
    """The share of prompts, of those that were graded, whose rewards are all equal."""
    values = gradable(rewards)
    return sum(map(all_equal, values)) / len(values) if values else 0.0


def ungradable_share(rewards: Rewards) -> float:
    flat = [reward for of_prompt in rewards for reward in of_prompt]
    return sum(not math.isfinite(reward) for reward in flat) / len(flat) if flat else 0.0


@dataclass(frozen=True)
class Repeats:
    """Pairs of grades of the same completions. ``disagreement``: the share that differ. ``noise``: the variance of a
    reward about a completion's mean reward, half the mean squared difference."""

    pairs: int
    disagreement: float
    noise: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Repeats:
        both = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
        differing = sum(not all_equal(pair) for pair in both)
        differing += sum(math.isfinite(a) != math.isfinite(b) for a, b in pairs)
        noise = float(np.mean([(a - b) ** 2 / 2 for a, b in both])) if both else 0.0
        return cls(len(pairs), differing / len(pairs) if pairs else 0.0, noise)

    def reliability(self, within: float) -> float:
        """The share of the within-prompt variance that is not the grader's noise."""
        return max(0.0, 1.0 - self.noise / within) if within > 0 else 1.0
