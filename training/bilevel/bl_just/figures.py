"""figures/bl_just.png, from result.json alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "supervised": "supervised only",
    "pretrain": "pre-train + fine-tune",
    "fixed": "fixed γ",
    "bl_just": "BL-JUST",
}


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


def _draw_rates(axes: Any, result: dict[str, Any]) -> None:
    methods = list(result["table"])
    for shift, (part, rate) in enumerate((("dev", "wer"), ("test", "wer"), ("test", "cer"))):
        places = np.arange(len(methods)) + 0.2 * (shift - 1)
        found = [result["table"][method][f"{part}_{rate}"] for method in methods]
        means = [one["mean"] for one in found]
        bars = [[one["mean"] - one["low"] for one in found], [one["high"] - one["mean"] for one in found]]
        axes.errorbar(places, means, bars, fmt="o", capsize=3, color=f"C{shift}", label=f"{part} {rate.upper()}")
        for place, method in zip(places, methods, strict=True):
            seeds = [one[part][rate] for one in result["results"][method]]
            axes.plot([place] * len(seeds), seeds, ".", color=f"C{shift}", alpha=0.3)
    axes.set_xticks(range(len(methods)), [NAMES[method] for method in methods], fontsize=8)
    axes.set(title=f"{result['config']['models']} seeds, 95 % intervals", ylabel="error rate", ylim=(0, None))
    axes.legend(fontsize=8)


def _draw_curves(axes: Any, results: dict[str, Any]) -> None:
    for method, found in results.items():
        curve = np.mean([one["curve"] for one in found], axis=0)
        axes.plot(range(1, len(curve) + 1), curve, label=NAMES[method])
    axes.set(title="mean over seeds", xlabel="supervised passes", ylabel="dev WER")
    axes.legend(fontsize=8)
