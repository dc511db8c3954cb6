"""Exponents of 1/gap and of n in the transient iterations, from the lengths of ``bilevel.transient``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from training.intervals import band
from training.json_values import JsonObject

Lengths = list[float | None]
"""log2 of the transient's length; None where it is not within the horizons."""

FITTED_LENGTHS = 3  # of a problem


class Slope(TypedDict):
    """``of_repeats``: of log length over log 1/gap or log n, by least squares; None for a problem with fewer than
    FITTED_LENGTHS lengths. ``band``: None where a problem has none.
    """

    of_repeats: list[float | None]
    band: JsonObject | None


def slopes(lengths: JsonObject, gaps: Sequence[float], sizes: Sequence[int]) -> dict[str, dict[str, Slope]]:
    """Slopes by study and method, from ``lengths`` as result.json has them: "gaps", "sizes" and "levels".

    Over 1/gap, of each problem's FITTED_LENGTHS smallest gaps that have a length: an exponent is that of long
    transients. Over n, of FITTED_LENGTHS neighbouring numbers of agents, the same ones for all methods and problems.
    """
    by_gap = np.log2(1 / np.array(gaps))
    studies = {f"gap, {measure}": _of_methods(rows, by_gap) for measure, rows in lengths["gaps"].items()}
    for first in range(len(sizes) - FITTED_LENGTHS + 1):
        window = slice(first, first + FITTED_LENGTHS)
        rows = {method: [row[window] for row in rows] for method, rows in lengths["sizes"].items()}
        label = f"n from {sizes[window][0]} to {sizes[window][-1]}"
        studies[label] = _of_methods(rows, np.log2(np.array(sizes[window])))
    return studies | {
        f"gap of the {level} level": _of_methods(rows, by_gap) for level, rows in lengths["levels"].items()
    }


def _of_methods(lengths: dict[str, list[Lengths]], x: np.ndarray) -> dict[str, Slope]:
    return {method: _slope(rows, x) for method, rows in lengths.items()}


def _slope(rows: Sequence[Lengths], x: np.ndarray) -> Slope:
    of_repeats = [_fit(row, x) for row in rows]
    complete = [slope for slope in of_repeats if slope is not None]
    return {"of_repeats": of_repeats, "band": band(complete) if len(complete) == len(of_repeats) else None}


def _fit(row: Lengths, x: np.ndarray) -> float | None:
    y = np.array(row, dtype=float)
    reached = np.isfinite(y)
    if reached.sum() < FITTED_LENGTHS:
        return None
    return float(np.polyfit(x[reached][-FITTED_LENGTHS:], y[reached][-FITTED_LENGTHS:], 1)[0])
