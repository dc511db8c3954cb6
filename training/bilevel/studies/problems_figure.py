"""The figure of ``bilevel.problems``, from result.json alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from training.bilevel.studies.ready_problems import STUDIES
from training.intervals import draw_band


def draw(folder: Path) -> None:
    """Write figures/problems.png: by gradient evaluations, or by bytes where workers send to a server."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = json.loads((folder / "result.json").read_text())["curves"]
    figure, panels = plt.subplots(1, len(curves), figsize=(4.6 * len(curves), 5), layout="constrained", squeeze=False)
    for axes, (study, methods) in zip(panels[0], curves.items(), strict=True):
        score, by_bytes = STUDIES[study].score, "SOBA" in methods
        axes.set(title=STUDIES[study].title, ylabel=score)
        axes.set_xlabel("kB sent by a worker" if by_bytes else "gradient evaluations per agent")
        for name, curve in methods.items():
            x = np.array(curve["bytes"]) / 1e3 if by_bytes else np.array(curve["evaluations"])
            draw_band(axes, x[1:], curve[score][1:], name)
        if by_bytes:
            axes.set_xscale("log")
        if score == "error":
            lowest = min(np.mean(curve[score], axis=1).min() for curve in methods.values())
            axes.set(yscale="log", ylim=(lowest / 3, None))
            axes.text(0.02, 0.02, "bands that leave the panel reach 0 or less", transform=axes.transAxes, fontsize=7)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    figure.savefig(folder / "figures" / "problems.png", dpi=100)
    plt.close(figure)
