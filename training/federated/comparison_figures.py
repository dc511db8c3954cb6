"""The figure of a comparison, from result.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from training.federated.comparison_summary import Band, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {
    "FADAS": ("C0", "-"),
    "FADAS, delay-adaptive": ("C3", "-"),
    "FedBuff": ("C1", "-"),
    "FedAsync": ("C2", "-"),
    "CA2FL": ("C4", "-"),
    "FedAdam": ("C5", "--"),
    "FedAMS": ("C6", "--"),
    "FedAvg": ("C7", "--"),
    "FedAMS, all places": ("C6", ":"),
    "FedAvg, all places": ("C7", ":"),
}


def draw(folder: Path) -> None:
    """Write figures/accuracy.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads((folder / "result.json").read_text())
    results: Results = result["results"]
    size = result["config"]["buffer_size"]
    figure, panels = plt.subplots(
        len(results), 2, figsize=(12, 4 * len(results)), layout="constrained", sharey=True, squeeze=False
    )
    for (by_updates, by_time), (delays, summary) in zip(panels, results.items(), strict=True):
        for method, row in summary["methods"].items():
            _band(by_updates, [updates / size for updates in row["updates"]], row["by_updates"], method)
            _band(by_time, summary["times"], row["by_time"], method)
        by_updates.set(title=f"{delays} delays", xlabel=f"rounds of {size} client updates", ylabel="test accuracy")
        by_time.set(title=f"{delays} delays", xlabel="virtual time")
    rows = [row for summary in results.values() for row in summary["methods"].values()]
    lowest = min(min(row["end"]["mean"] - 0.25, row["at_horizon"]["mean"] - 0.05) for row in rows)
    panels[0, 0].set_ylim(max(0.0, lowest), None)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(folder / "figures" / "accuracy.png", dpi=100)
    plt.close(figure)


def _band(axes: Axes, x: list[float], band: Band, method: str) -> None:
    colour, line = STYLES[method]
    axes.plot(x, band["mean"], color=colour, linestyle=line, label=method, linewidth=1.4)
    axes.fill_between(x, band["low"], band["high"], color=colour, alpha=0.15, linewidth=0)
