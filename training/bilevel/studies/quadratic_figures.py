"""figures/quadratic.png of `iro run bilevel.quadratic`, from its result.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from training.bilevel.studies.quadratic_measurements import CompressedRun, PairStudy, SpeedupStudy, TopologyStudy

D_SOBA_STYLE = {"color": "black", "linestyle": "--"}


def draw(folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads((folder / "result.json").read_text())
    figure, panels = plt.subplots(2, 4, figsize=(17, 7.5), layout="constrained")
    _pairs(panels[0, 0], result["pairs"])
    _topologies(panels[0, 1:], result["topologies"])
    _floors(panels[1, 0], result["topologies"])
    _speedup(panels[1, 1], result["speedup"])
    by_noise = result["compressed"]["runs"]
    for axes, noise in zip(panels[1, 2:], by_noise, strict=False):
        _compressed(axes, noise, by_noise[noise], result["compressed"]["every"])
    for axes in panels[1, 2 + len(by_noise) :]:
        axes.set_axis_off()
    figure.savefig(folder / "figures" / "quadratic.png", dpi=80)
    plt.close(figure)


def _pairs(axes: Axes, study: PairStudy) -> None:
    errors = np.array(study["errors"])  # [repeats, time, pair]
    steps = study["every"] * np.arange(1, errors.shape[1] + 1)
    for i, name in enumerate(study["names"]):
        style = {"color": "C0", "alpha": 0.4} if "/" in name else D_SOBA_STYLE
        label = {len(study["names"]) - 1: "D-SOBA", 0: f"{len(study['names']) - 1} SPARKLE pairs"}.get(i)
        axes.plot(steps, np.exp(np.log(errors[:, :, i]).mean(0)), label=label, **style)
    axes.set(yscale="log", xlabel="steps", ylabel="Σ‖x_i - x*‖²", title="exact gradients, ring of 8")
    axes.legend(fontsize=8)


def _topologies(panels: np.ndarray, study: TopologyStudy) -> None:
    """The severe level over time, one panel per topology."""
    for axes, (name, errors) in zip(panels, study["errors"]["severe"].items(), strict=True):
        means = np.array(errors).mean(2)  # [time, pair]
        steps = study["every"] * np.arange(1, len(means) + 1)
        for i, pair in enumerate(study["names"]):
            style = D_SOBA_STYLE if pair == "D-SOBA" else {}
            axes.plot(steps, means[:, i], label=pair, linewidth=1, **style)
        axes.set(yscale="log", xlabel="steps", title=f"severe, {name} (gap {study['gaps'][name]:.2f})")
    panels[0].legend(fontsize=8)


def _floors(axes: Axes, study: TopologyStudy) -> None:
    """The mean error of the second half, by topology and level."""
    places = [(level, name) for level, by_topology in study["errors"].items() for name in by_topology]
    for i, pair in enumerate(study["names"]):
        tails = [np.array(study["errors"][level][name])[:, i] for level, name in places]
        heights = [tail[len(tail) // 2 :].mean() for tail in tails]
        axes.bar(
            np.arange(len(places)) + i / 8, heights, 1 / 8, label=pair, color="black" if pair == "D-SOBA" else None
        )
    labels = [f"{level}\n{name.split()[-1]}" for level, name in places]
    axes.set_xticks(np.arange(len(places)) + 0.3, labels, fontsize=8)
    axes.set(yscale="log", ylabel="Σ‖x_i - x*‖², second half", title="heterogeneity and topology")


def _speedup(axes: Axes, study: SpeedupStudy) -> None:
    for i, (name, scaled) in enumerate(study["scaled"].items()):
        mean, low, high = (np.array(scaled[key]) for key in ("mean", "low", "high"))
        places = np.array(study["sizes"]) * (1 + 0.03 * i)
        axes.errorbar(places, mean, [mean - low, high - mean], fmt="o-", label=name, markersize=4)
    axes.set(xscale="log", xlabel="agents n", ylabel="n · mean squared error", title="noisy gradients, ring")
    axes.set_xticks(study["sizes"], [str(n) for n in study["sizes"]])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def _compressed(axes: Axes, noise: str, runs: Mapping[str, list[CompressedRun]], every: int) -> None:
    for name, repeats in runs.items():
        squares = np.exp(np.mean([np.log(repeat["squares"]) for repeat in repeats], axis=0))
        bits = repeats[0]["bits_up"] * every * np.arange(1, len(squares) + 1)
        color, linestyle = ("black", "--") if name == "uncompressed" else (None, "-")
        axes.plot(bits, squares, label=name, linewidth=1, color=color, linestyle=linestyle)
    axes.set(
        xscale="log", yscale="log", xlabel="bits sent per worker", ylabel="‖∇Φ‖²", title=f"compressed, noise {noise}"
    )
    axes.legend(fontsize=8)
