"""Statistics of few runs: means with Student intervals; IQM, profiles and probability of improvement by bootstrap.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021 (arXiv:2108.13264).
Scores are [..., N, M]: N runs (seeds) of each of M tasks, any axes before them, such as the steps of a curve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import trim_mean

from training.intervals import band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Result = dict[str, Any]  # an object of result.json
Statistic = Callable[..., np.ndarray]  # arrays of scores [..., N, M] to [..., *]


class Estimate(NamedTuple):
    """A statistic and its interval, of one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def plain(self) -> Result:
        """Lists and numbers, for result.json."""
        return {name: np.asarray(part).tolist() for name, part in self._asdict().items()}

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def iqm(scores: np.ndarray) -> np.ndarray:
    """The interquartile mean over runs and tasks, [..., N, M] to [...]: a quarter is cut off at each end (§4.3)."""
    return trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def mean(scores: np.ndarray) -> np.ndarray:
    """The mean over runs and tasks, [..., N, M] to [...]."""
    return scores.mean(axis=(-2, -1))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The probability that a run of x beats one of y on a uniform task, ties half: Mann–Whitney U over N·K (§4.3).

    x [..., N, M], y [..., K, M] to [...].
    """
    above = x[..., :, None, :] - y[..., None, :, :]
    return ((np.sign(above) + 1) / 2).mean(axis=(-3, -2, -1))


def profile(thresholds: ArrayLike) -> Statistic:
    """The performance profile: [..., N, M] to [..., τ], the share of runs with a score above each threshold (§4.2)."""
    levels = np.asarray(thresholds, float)
    return lambda scores: (scores[..., None] > levels).mean(axis=(-3, -2))


def interval(
    statistic: Statistic, *scores: ArrayLike, rng: np.random.Generator, draws: int = 2000, level: float = 0.95
) -> Estimate:
    """A statistic of one or two arrays of scores, with its percentile interval by stratified bootstrap (§4.1).

    Each draw resamples the runs of each task independently, with replacement; a run keeps its full curve. With
    ``iqm`` and scores [T, N, M] this is the sample-efficiency curve. Too narrow for few runs (``student``). Raises
    ValueError for scores that are empty or not finite.
    """
    arrays = [_checked(array) for array in scores]
    resampled = statistic(*(_resample(array, rng, draws) for array in arrays))
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Estimate(statistic(*arrays), low, high)


def student(scores: ArrayLike) -> Estimate:
    """The mean over runs and tasks of scores [..., N, M] with its 95 % Student interval over the N runs.

    For few runs: with five, the percentile bootstrap of ``interval`` covers a normal mean in 84 % of cases. Raises
    ValueError as ``interval`` does.
    """
    interval_of_mean = band(_checked(scores).mean(axis=-1), axis=-1)
    return Estimate(*(np.asarray(interval_of_mean[name]) for name in ("mean", "low", "high")))


def verdict(gap: Estimate, first: str, second: str, runs: int, spec: str) -> str:
    """The gap of ``first`` less ``second`` over ``runs`` runs, in format ``spec``, and which is better by it."""
    if runs == 1:
        return f"{gap.value:{spec}}, one run of each: no interval"
    noise = "within noise" if gap.low <= 0 <= gap.high else f"{first if gap.low > 0 else second} is better"
    return f"{gap:{spec}}, {noise}"


def _checked(scores: ArrayLike) -> np.ndarray:
    array = np.asarray(scores, float)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"scores of shape {array.shape}: [..., runs, tasks] is needed, with one of each at least")
    if not np.isfinite(array).all():
        raise ValueError("scores must be finite: drop the runs that failed, and say so")
    return array


def _resample(scores: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    """[..., N, M] to [draws, ..., N, M]."""
    runs, tasks = scores.shape[-2:]
    picked = scores[..., rng.integers(runs, size=(draws, runs, tasks)), np.arange(tasks)]
    return np.moveaxis(picked, -3, 0)


def draw_band(axes: Axes, x: ArrayLike, curve: Estimate | Result, label: str, **style: Any) -> None:
    """Plot an estimate over ``x`` with its interval as a band. ``curve``: an Estimate, or its ``plain`` form."""
    estimate = curve if isinstance(curve, Estimate) else Estimate(**curve)
    (line,) = axes.plot(x, estimate.value, label=label, **style)
    axes.fill_between(x, estimate.low, estimate.high, color=line.get_color(), alpha=0.2, linewidth=0)
