"""figures/bl_just.png, from result.json."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from training.speech.results import PARTS, BLJustResult, TrainingResult
from training.speech.schedule import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_WIDTH = 20  # characters of a line
CURVES = 5  # at most, in a panel


def draw(folder: Path) -> None:
    """Error rate of each method with intervals over seeds, and dev's over the passes with texts."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads((folder / "result.json").read_text())
    rate = result["config"]["select"]
    figure, (rates, curves) = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    _draw_rates(rates, result, rate)
    _draw_curves(curves, result["results"], rate)
    figure.savefig(folder / "figures" / "bl_just.png", dpi=110)
    plt.close(figure)


def _draw_rates(axes: Axes, result: BLJustResult, rate: Literal["wer", "cer"]) -> None:
    methods = list(result["table"])
    for shift, part in enumerate(PARTS):
        places = np.arange(len(methods)) + 0.2 * (shift - 0.5)
        bands = [result["table"][method][f"{part}_{rate}"] for method in methods]
        means = [band["mean"] for band in bands]
        bars = [[band["mean"] - band["low"] for band in bands], [band["high"] - band["mean"] for band in bands]]
        axes.errorbar(means, places, xerr=bars, fmt="o", capsize=3, color=f"C{shift}", label=part)
        for place, method in zip(places, methods, strict=True):
            seeds = [training[part][rate] for training in result["results"][method]]
            axes.plot(seeds, [place] * len(seeds), ".", color=f"C{shift}", alpha=0.3)
    axes.set_yticks(range(len(methods)), [textwrap.fill(NAMES[method], LABEL_WIDTH) for method in methods], fontsize=8)
    axes.invert_yaxis()
    axes.set(title=f"{result['config']['models']} seeds, 95 % intervals", xlabel=f"{rate.upper()}, less is better")
    axes.legend(fontsize=8)


def _draw_curves(axes: Axes, results: dict[str, list[TrainingResult]], rate: str) -> None:
    for method, trainings in list(results.items())[:CURVES]:
        curve = np.mean([training["curve"] for training in trainings], axis=0)
        axes.plot(range(1, len(curve) + 1), curve, label=NAMES[method])
    axes.set(title="mean over seeds", xlabel="passes with texts", ylabel=f"dev {rate.upper()}")
    axes.legend(fontsize=8)
