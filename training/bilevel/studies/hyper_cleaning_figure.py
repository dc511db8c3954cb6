"""The figure of ``bilevel.hyper_cleaning``, from result.json alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from training.bilevel.algorithms.registry import METHODS
from training.intervals import draw_band


def draw(folder: Path) -> None:
    """Write figures/hyper_cleaning.png: accuracy by gradients (top) and by bytes (bottom), a column per corruption."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = json.loads((folder / "result.json").read_text())["curves"]
    figure, panels = plt.subplots(2, len(curves), figsize=(4.4 * len(curves), 7.4), layout="constrained", squeeze=False)
    for column, (corruption, methods) in enumerate(curves.items()):
        above, below = panels[:, column]
        above.set(title=f"{float(corruption):.0%} wrong labels", xlabel="gradient evaluations per agent")
        below.set(xscale="log", xlabel="kB sent by a worker")
        for name, curve in methods.items():
            compressed = METHODS[name].compressed
            x = np.array(curve["bytes"]) / 1e3 if compressed else curve["evaluations"]
            draw_band(below if compressed else above, x, curve["accuracy"], name)
    for axes in panels[:, 0]:
        axes.set_ylabel("test accuracy, mean of agents")
        axes.legend(fontsize=8)
    figure.savefig(folder / "figures" / "hyper_cleaning.png", dpi=80)
    plt.close(figure)
