"""figures/bl_just.png, from result.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from training.speech.results import BLJustResult, TrainingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "supervised": "supervised only",
    "pretrain": "pre-train + fine-tune",
    "fixed": "fixed γ",
    "bl_just": "BL-JUST",
}


PLOTTED: tuple[tuple[Literal["dev", "test"], Literal["wer", "cer"]], ...] = (
    ("dev", "wer"),
    ("test", "wer"),
    ("test", "cer"),
)


def draw(folder: Path) -> None:
    """Error rates of each method with intervals over seeds, and dev WER over supervised passes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads((folder / "result.json").read_text())
    figure, (rates, curves) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    _draw_rates(rates, result)
    _draw_curves(curves, result["results"])
    figure.savefig(folder / "figures" / "bl_just.png", dpi=90)
    plt.close(figure)


def _draw_rates(axes: Axes, result: BLJustResult) -> None:
    methods = list(result["table"])
    for shift, (part, rate) in enumerate(PLOTTED):
        places = np.arange(len(methods)) + 0.2 * (shift - 1)
        bands = [result["table"][method][f"{part}_{rate}"] for method in methods]
        means = [band["mean"] for band in bands]
        bars = [[band["mean"] - band["low"] for band in bands], [band["high"] - band["mean"] for band in bands]]
        axes.errorbar(places, means, bars, fmt="o", capsize=3, color=f"C{shift}", label=f"{part} {rate.upper()}")
        for place, method in zip(places, methods, strict=True):
            seeds = [training[part][rate] for training in result["results"][method]]
            axes.plot([place] * len(seeds), seeds, ".", color=f"C{shift}", alpha=0.3)
    axes.set_xticks(range(len(methods)), [NAMES[method] for method in methods], fontsize=8)
    axes.set(title=f"{result['config']['models']} seeds, 95 % intervals", ylabel="error rate", ylim=(0, None))
    axes.legend(fontsize=8)


def _draw_curves(axes: Axes, results: dict[str, list[TrainingResult]]) -> None:
    for method, trainings in results.items():
        curve = np.mean([training["curve"] for training in trainings], axis=0)
        axes.plot(range(1, len(curve) + 1), curve, label=NAMES[method])
    axes.set(title="mean over seeds", xlabel="supervised passes", ylabel="dev WER")
    axes.legend(fontsize=8)
