"""Bands over seeds of accuracy curves, against client updates and against virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from training.federated.experiment import METHODS, Curve
from training.intervals import band

LAST = 3  # evaluations whose mean is the final accuracy, which fluctuates between rounds
POINTS = 41

Band = dict[str, list[float]]
ScalarBand = dict[str, float]


class Choice(TypedDict, total=False):
    """The server's step, the accuracies of the steps that were ``tried``, and whether it is the smallest or largest."""

    step: float
    tried: dict[float, float]
    at_edge: bool


Choices = dict[str, dict[str, Choice]]  # by delays and method


class MethodSummary(TypedDict):
    """Of one method, over seeds.

    ``oldest``: largest staleness in server rounds; ``mean_oldest``: mean over rounds of their largest staleness.
    ``lowered_step_share``: share of rounds with a lower step. ``binding_min_rounds``: rounds in which 1/τ_max is below
    the step.
    """

    step: float
    updates: list[int]
    by_updates: Band
    by_time: Band
    end: ScalarBand
    at_horizon: ScalarBand
    duration: float
    oldest: int
    mean_oldest: float
    lowered_step_share: float
    binding_min_rounds: int
    per_seed: list[float]


class DelaySummary(TypedDict):
    """Of one delay model."""

    horizon: float
    times: list[float]
    methods: dict[str, MethodSummary]


Results = dict[str, DelaySummary]  # by delays


def end(curve: Curve) -> float:
    return float(np.mean(curve["accuracy"][-LAST:]))


def summary(curves: Mapping[str, list[Curve]], chosen: Mapping[str, Choice]) -> DelaySummary:
    """Bands by method. Virtual time ends at the ``horizon``, the end of the first run of an asynchronous method."""
    asynchronous = [curve for method, seeds in curves.items() if METHODS[method].waits == "no" for curve in seeds]
    horizon = min(
        curve["times"][-1] for curve in asynchronous or [curve for seeds in curves.values() for curve in seeds]
    )
    times = np.linspace(0, horizon, POINTS)
    methods: dict[str, MethodSummary] = {}
    for method, seeds in curves.items():
        timed = [np.interp(times, curve["times"], curve["accuracy"]) for curve in seeds]
        oldest = np.array([curve["staleness"] for curve in seeds])
        step = chosen[method]["step"]
        methods[method] = {
            "step": step,
            "updates": seeds[0]["updates"],
            "by_updates": band([curve["accuracy"] for curve in seeds]),
            "by_time": band(timed),
            "end": band([end(curve) for curve in seeds]),
            "at_horizon": band([accuracies[-1] for accuracies in timed]),
            "duration": float(np.mean([curve["times"][-1] for curve in seeds])),
            "oldest": int(oldest.max()),
            "mean_oldest": float(oldest.mean()),
            "lowered_step_share": float(np.mean([curve["bound"] for curve in seeds]) / oldest.shape[1]),
            "binding_min_rounds": int((oldest * step > 1).sum()),
            "per_seed": [end(curve) for curve in seeds],
        }
    return {"horizon": horizon, "times": times.tolist(), "methods": methods}
