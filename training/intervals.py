"""What a handful of repeats say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from training.json_values import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def band(values: ArrayLike, axis: int = 0) -> JsonObject:
    """Mean and 95 % Student interval over ``axis``: {"mean", "low", "high"}. A single value has no width."""
    values = np.asarray(values, float)
    count, mean = values.shape[axis], values.mean(axis)
    half = stats.t.ppf(0.975, count - 1) * stats.sem(values, axis=axis) if count > 1 else np.zeros_like(mean)
    return {"mean": mean.tolist(), "low": (mean - half).tolist(), "high": (mean + half).tolist()}


def draw_band(axes: Axes, x: ArrayLike, samples: ArrayLike, label: str) -> None:
    """Means over the last axis of ``samples`` [len(x)][repeats], and their intervals as a band."""
    interval = band(samples, axis=-1)
    (line,) = axes.plot(x, interval["mean"], marker=".", label=label)
    axes.fill_between(x, interval["low"], interval["high"], color=line.get_color(), alpha=0.15, linewidth=0)
