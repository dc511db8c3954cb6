"""What a handful of repeats say."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats


def band(values: Any) -> dict[str, Any]:
    """Mean and 95 % Student interval over the last axis: {"mean", "low", "high"}."""
    values = np.asarray(values, float)
    count, mean = values.shape[-1], values.mean(-1)
    half = stats.t.ppf(0.975, count - 1) * stats.sem(values, axis=-1) if count > 1 else np.zeros_like(mean)
    return {"mean": mean.tolist(), "low": (mean - half).tolist(), "high": (mean + half).tolist()}
