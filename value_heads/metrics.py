"""The quality of a value function by token position. N rollouts, T token positions, NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class WithinPrompt:
    """The correlation of V with the final reward among rollouts of one prompt at one token.

    This, not R², predicts the gain of a search. ``correlation_T`` [T]: by token; NaN where fewer than two rollouts
    of a prompt reach it, or either side is constant. ``correlation``: over all tokens at once; where rollouts still
    share their tokens it counts as no correlation. NaN where either side is constant. ``variance_share_T`` [T]: of
    V's variance, summed over all tokens; sums to 1.
    """

    correlation_T: Array
    correlation: float
    variance_share_T: Array


def within_prompt(
    values_NT: ArrayLike, rewards_N: ArrayLike, prompt_ids_N: ArrayLike, lengths_N: ArrayLike
) -> WithinPrompt:
    """Statistics of V and reward after subtracting their prompt means over the rollouts that reach the token."""
    values, rewards, prompts, lengths = _arrays(values_NT, rewards_N, prompt_ids_N, lengths_N)
    vv, rr, vr = (np.zeros(values.shape[1]) for _ in range(3))
    for t in range(values.shape[1]):
        live = lengths > t
        v = _less_prompt_mean(values[live, t], prompts[live])
        r = _less_prompt_mean(rewards[live], prompts[live])
        vv[t], rr[t], vr[t] = v @ v, r @ r, v @ r
    spread_T, spread = np.sqrt(vv * rr), float(np.sqrt(vv.sum() * rr.sum()))
    correlation_T = np.divide(vr, spread_T, out=np.full(len(vr), np.nan), where=spread_T > 1e-12)
    share_T = vv / vv.sum() if vv.sum() > 0 else np.full(len(vv), np.nan)
    return WithinPrompt(correlation_T, float(vr.sum() / spread) if spread > 1e-12 else float("nan"), share_T)


def r2_by_position(values_NT: ArrayLike, rewards_N: ArrayLike, lengths_N: ArrayLike) -> Array:
    """[T]: 1 - sum (V - r)^2 / sum (r - mean r)^2 over the rollouts that reach each token; NaN if rewards are equal."""
    values, rewards, _, lengths = _arrays(values_NT, rewards_N, np.zeros(len(np.asarray(rewards_N))), lengths_N)
    result = np.full(values.shape[1], np.nan)
    for t in range(values.shape[1]):
        v, r = values[lengths > t, t], rewards[lengths > t]
        spread = ((r - r.mean()) ** 2).sum() if len(r) else 0.0
        if spread > 0:
            result[t] = 1 - ((v - r) ** 2).sum() / spread
    return result


@dataclass(frozen=True)
class CalibrationBin:
    """Rollout prefixes of similar value: their count, mean V and mean reward."""

    count: int
    predicted: float
    realised: float


def calibration(values: ArrayLike, rewards: ArrayLike, bins: int = 10) -> list[CalibrationBin]:
    """Up to ``bins`` bins of equal count, by rising value; values and rewards: [N]."""
    values, rewards = np.asarray(values, dtype=float), np.asarray(rewards, dtype=float)
    parts = np.array_split(np.argsort(values, kind="stable"), bins)
    return [CalibrationBin(len(p), float(values[p].mean()), float(rewards[p].mean())) for p in parts if len(p)]


def _less_prompt_mean(x: Array, prompts: Array) -> Array:
    _, index = np.unique(prompts, return_inverse=True)
    return x - (np.bincount(index, x) / np.bincount(index))[index] if len(x) else x


def _arrays(*columns: ArrayLike) -> tuple[Array, ...]:
    return tuple(np.asarray(column, dtype=float) for column in columns)
