"""figures/transient.png of `iro run bilevel.transient`, from its result.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from iro_server import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BOTH_LEVELS = {"C0": "ED", "C4": "D-SOBA"}


def draw(folder: Path) -> None:
    draw_lengths(json.loads((folder / "result.json").read_text()), folder / "figures" / "transient.png")


def draw_lengths(result: JsonObject, path: Path) -> None:
    """Lengths over 1/gap, over n, and over 1/gap of one level; medians over problems."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    config = result["config"]
    inverse_gaps = 1 / np.array(config["gaps"])
    figure, panels = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for method, rows in result["gaps"]["every_agent"].items():
        _curve(panels[0], inverse_gaps, rows, label=method)
    for method, rows in result["sizes"].items():
        _curve(panels[1], config["sizes"], rows, label=method)
    for level, line in (("lower", "-"), ("upper", "--")):
        for colour, method in BOTH_LEVELS.items():
            rows = result["levels"][level][method]
            _curve(panels[2], inverse_gaps, rows, label=f"{method}, {level}", color=colour, linestyle=line)
    for axes, x, title in (
        (panels[0], "1 / spectral gap", f"{config['agents']} agents"),
        (panels[1], "agents n", f"gap {config['size_gap']:.3g}"),
        (panels[2], "1 / gap of the level", f"gap of the other level {config['level_gap']:g}"),
    ):
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel=x, title=title)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("transient iterations")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(
    axes: Axes,
    x: Sequence[float] | np.ndarray,
    rows: Sequence[Sequence[float | None]],
    label: str,
    color: str | None = None,
    linestyle: str = "-",
) -> None:
    lengths = 2.0 ** np.array(rows, dtype=float)  # [repeats, x]; None is NaN, which is not drawn
    middle = np.median(lengths, axis=0)
    if np.isnan(middle).all():
        return
    axes.plot(x, middle, marker="o", markersize=3, linewidth=1, label=label, color=color, linestyle=linestyle)
