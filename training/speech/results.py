"""The parts of result.json of `iro run bilevel.bl_just`, and its table."""

from __future__ import annotations

from typing import Literal, TypedDict

from training.intervals import band
from training.speech.training import ErrorRates

PARTS: tuple[Literal["dev", "test"], ...] = ("dev", "test")
RATES: tuple[Literal["wer", "cer"], ...] = ("wer", "cer")
Table = dict[str, dict[str, dict[str, float]]]  # bands by method and quantity


class TrainingResult(TypedDict):
    """``curve``: the chosen error rate on dev after each pass with texts."""

    method: str
    seed: int
    curve: list[float]
    dev: ErrorRates
    test: ErrorRates


class BLJustResult(TypedDict):
    """``chosen``, by method: the rates. ``tuning``: what was tried for them. ``results``, by method: one per seed."""

    config: dict[str, object]
    chosen: dict[str, dict[str, float]]
    tuning: dict[str, dict[str, object]]
    results: dict[str, list[TrainingResult]]
    table: Table


def table(results: dict[str, list[TrainingResult]]) -> Table:
    """Means with 95 % Student intervals over seeds, and of the differences from supervised-only, paired by seed."""
    rows: Table = {}
    for method, trainings in results.items():
        rows[method] = {
            f"{part}_{rate}": band([training[part][rate] for training in trainings]) for part in PARTS for rate in RATES
        }
        if "supervised" in results and method != "supervised":
            for rate in RATES:
                pairs = zip(trainings, results["supervised"], strict=True)
                gaps = [a["test"][rate] - b["test"][rate] for a, b in pairs]
                rows[method][f"test_{rate}_less_supervised"] = band(gaps)
    return rows
