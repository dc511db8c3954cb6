"""The parts of result.json of `iro run bilevel.bl_just`, and its table."""

from __future__ import annotations

from typing import Literal, TypedDict

from training.intervals import band
from training.speech.training import ErrorRates

PARTS: tuple[Literal["dev", "test"], ...] = ("dev", "test")
RATES: tuple[Literal["wer", "cer"], ...] = ("wer", "cer")
Table = dict[str, dict[str, dict[str, float]]]  # bands by method and quantity


class TrainingResult(TypedDict):
    """``curve``: WER on dev after each supervised pass."""

    method: str
    seed: int
    curve: list[float]
    dev: ErrorRates
    test: ErrorRates


class BLJustResult(TypedDict):
    """``chosen``, by method: the tuned rates. ``results``, by method: one per seed."""

    config: dict[str, object]
    chosen: dict[str, dict[str, float]]
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
            pairs = zip(trainings, results["supervised"], strict=True)
            rows[method]["test_wer_less_supervised"] = band([a["test"]["wer"] - b["test"]["wer"] for a, b in pairs])
    return rows
