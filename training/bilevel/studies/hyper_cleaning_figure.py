"""The figure of ``bilevel.hyper_cleaning``, from its curves alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.bilevel.algorithms.registry import METHODS
from training.intervals import draw_band
from training.json_values import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = 5  # of a panel, at most
LOWEST = 0.4  # accuracy at which panels are cut


def draw(folder: Path) -> None:
    """Write figures/hyper_cleaning.png."""
    curves = json.loads((folder / "result.json").read_text())["curves"]
    draw_curves(curves, folder / "figures" / "hyper_cleaning.png")


def draw_curves(curves: JsonObject, path: Path) -> None:
    """Accuracy by gradients, and of compressed methods and SOBA by bytes; a column per corruption.

    ``curves``: by corruption and method, a ``CleaningCurve``.
    """
    from matplotlib.figure import Figure

    methods = list(next(iter(curves.values())))
    groups = [("evaluations", group) for group in chunks([name for name in methods if not _by_bytes(name)])]
    groups += [("bytes", group) for group in chunks([name for name in methods if _by_bytes(name)])]
    figure = Figure(figsize=(4.6 * len(curves), 3.4 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), len(curves), squeeze=False, sharey=True)
    for column, (corruption, by_method) in enumerate(curves.items()):
        panels[0, column].set_title(f"{float(corruption):.0%} wrong labels")
        for axes, (x_axis, group) in zip(panels[:, column], groups, strict=True):
            _panel(axes, x_axis, {name: by_method[name] for name in group})
    for axes in panels[:, 0]:
        axes.set_ylabel(f"test accuracy, cut at {LOWEST:g}")
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def chunks(names: list[str]) -> list[list[str]]:
    """Groups of at most ``CURVES`` names, of equal size as far as they go."""
    count = -(-len(names) // CURVES)
    return [list(part) for part in np.array_split(names, count)] if names else []


def _by_bytes(name: str) -> bool:
    return METHODS[name].compressed or name == "SOBA"


def _panel(axes: Axes, x_axis: str, by_method: Mapping[str, JsonObject]) -> None:
    for name, curve in by_method.items():
        draw_band(axes, np.array(curve[x_axis]) / (1e3 if x_axis == "bytes" else 1), curve["accuracy"], name)
    axes.set_ylim(bottom=LOWEST)
    axes.set_xlabel("kB sent by a worker" if x_axis == "bytes" else "gradient evaluations per agent")
    if x_axis == "bytes":
        axes.set_xscale("log")
