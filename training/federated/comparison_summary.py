"""Bands over seeds of accuracy curves, against client updates and against virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from training.federated.experiment import METHODS, Curve
from training.federated.schedule import Participation
from training.intervals import band

LAST = 3  # evaluations whose mean is a run's final accuracy, since accuracy fluctuates between rounds
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

    ``updates``: of the first seed; another's differ where several rounds end at one instant.
    ``oldest``: largest staleness in server rounds; ``mean_oldest``: mean over rounds of their largest staleness.
    ``lowered_step_share``: share of rounds with a lower step. ``binding_min_rounds``: rounds in which 1/τ_max is below
    the step. ``rounds_at_horizon``: server rounds that had ended, by seed.
    """

    step: float
    updates: list[int]
    by_updates: Band
    by_time: Band
    end: ScalarBand
    at_horizon: ScalarBand
    at_horizon_per_seed: list[float]
    rounds_at_horizon: list[int]
    duration: float
    oldest: int
    mean_oldest: float
    lowered_step_share: float
    binding_min_rounds: int
    per_seed: list[float]


class DelaySummary(TypedDict):
    """Of one delay model. ``participation``: of runs that select steps ("selection"), and of the others ("runs")."""

    horizon: float
    times: list[float]
    methods: dict[str, MethodSummary]
    participation: dict[str, Participation]


Results = dict[str, DelaySummary]  # by delays


def end(curve: Curve) -> float:
    """The final accuracy: the mean of the last regular evaluations, without that of the untrained model."""
    return float(np.mean(regular_accuracy(curve)[1:][-LAST:]))


def regular_accuracy(curve: Curve) -> list[float]:
    return [curve["accuracy"][i] for i in curve["regular"]]


def standing(curve: Curve, times: ArrayLike) -> np.ndarray:
    """The index of the last evaluation at each of ``times``."""
    return np.searchsorted(curve["times"], times, side="right") - 1


def summary(
    curves: Mapping[str, list[Curve]], chosen: Mapping[str, Choice], participation: dict[str, Participation]
) -> DelaySummary:
    """Bands by method. Virtual time ends at the ``horizon``, the end of the first run of an asynchronous method.

    The accuracy at a virtual time is that of the last model that was evaluated until then.
    """
    asynchronous = [curve for method, seeds in curves.items() if METHODS[method].waits == "no" for curve in seeds]
    horizon = min(
        curve["times"][-1] for curve in asynchronous or [curve for seeds in curves.values() for curve in seeds]
    )
    times = np.linspace(0, horizon, POINTS)
    methods = {
        method: method_summary(seeds, chosen[method]["step"], times, horizon) for method, seeds in curves.items()
    }
    return {"horizon": horizon, "times": times.tolist(), "methods": methods, "participation": participation}


def method_summary(seeds: Sequence[Curve], step: float, times: np.ndarray, horizon: float) -> MethodSummary:
    timed = [np.array(curve["accuracy"])[standing(curve, times)] for curve in seeds]
    at_horizon = [float(accuracies[-1]) for accuracies in timed]
    oldest = np.concatenate([curve["staleness"] for curve in seeds])  # of as many rounds as each seed has
    return {
        "step": step,
        "updates": seeds[0]["updates"],
        "by_updates": band([regular_accuracy(curve) for curve in seeds]),
        "by_time": band(timed),
        "end": band([end(curve) for curve in seeds]),
        "at_horizon": band(at_horizon),
        "at_horizon_per_seed": at_horizon,
        "rounds_at_horizon": [curve["rounds"][int(standing(curve, horizon))] for curve in seeds],
        "duration": float(np.mean([curve["times"][-1] for curve in seeds])),
        "oldest": int(oldest.max()),
        "mean_oldest": float(oldest.mean()),
        "lowered_step_share": sum(curve["bound"] for curve in seeds) / len(oldest),
        "binding_min_rounds": int((oldest * step > 1).sum()),
        "per_seed": [end(curve) for curve in seeds],
    }
