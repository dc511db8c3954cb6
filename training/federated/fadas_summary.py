"""Curves over seeds to bands, against client updates and against virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.federated.experiment import METHODS
from training.intervals import band

LAST = 3  # evaluations whose mean is the accuracy at the end: it jumps from round to round
POINTS = 41


def end(curve: Mapping[str, Any]) -> float:
    return float(np.mean(curve["accuracy"][-LAST:]))


def summary(curves: Mapping[str, list[dict[str, Any]]], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Bands by method. Virtual time goes to the ``horizon``, when the first run of a method that does not wait ends."""
    free = [each for method, own in curves.items() if METHODS[method].waits == "no" for each in own]
    horizon = min(each["times"][-1] for each in free or [each for own in curves.values() for each in own])
    times = np.linspace(0, horizon, POINTS)
    found = {}
    for method, own in curves.items():
        timed = [np.interp(times, each["times"], each["accuracy"]) for each in own]
        oldest = np.array([each["staleness"] for each in own])
        step = chosen[method]["step"]
        found[method] = {
            "step": step,
            "updates": own[0]["updates"],
            "by updates": band([each["accuracy"] for each in own]),
            "by time": band(timed),
            "end": band([end(each) for each in own]),
            "at the horizon": band([each[-1] for each in timed]),
            "duration": float(np.mean([each["times"][-1] for each in own])),
            "oldest": int(oldest.max()),
            "mean of oldest": float(oldest.mean()),
            "rounds with a lower step": float(np.mean([each["bound"] for each in own]) / oldest.shape[1]),
            "rounds with 1/τ_max below the step": int((oldest * step > 1).sum()),
            "per seed": [end(each) for each in own],
        }
    return {"horizon": horizon, "times": times.tolist(), "methods": found}
