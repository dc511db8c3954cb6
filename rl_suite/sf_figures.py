"""The figures of ``rl.sf_gpi``, from result.json alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rl_suite.stats import Result, draw_band


def draw(folder: Path) -> None:
    """Write figures/transfer.png and figures/theory.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads((folder / "result.json").read_text())
    figure, panels = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    _transfer(panels, result)
    figure.savefig(folder / "figures" / "transfer.png", dpi=120)
    figure, panels = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    _theory(panels, result)
    figure.savefig(folder / "figures" / "theory.png", dpi=120)
    plt.close("all")


def _transfer(panels: np.ndarray, result: Result) -> None:
    config = result["config"]
    (rooms, trained, several), (away, profiles, wins) = panels
    for name, curve in result["four_rooms"]["curves"].items():
        draw_band(rooms, np.arange(len(curve["value"])) + 1, curve, name, marker=".")
    rooms.set(xlabel="task", ylabel="reward collected while learning it", title="four rooms")
    titles = {"trained": "the training tasks", "several": "unseen: serve three targets", "away": "unseen: keep away"}
    for axes, (part, title) in zip((trained, several, away), titles.items(), strict=True):
        for name, curve in result[f"reacher_{part}"]["curves"].items():
            draw_band(axes, config["evaluate_every"] * (np.arange(len(curve["value"])) + 1), curve, name)
        for task in range(1, 4):
            axes.axvline(task * config["reacher_steps"], color="0.8", zorder=0)
        axes.set(xlabel="transitions (grey: the next task begins)", ylabel="return (IQM)", title=f"reacher, {title}")
    final = result["reacher_all"]
    for name, curve in final["profiles"].items():
        draw_band(profiles, final["profile_levels"], curve, name)
    profiles.set(xlabel="return τ", ylabel="share of runs above τ", title="reacher, all 12 tasks, at the end")
    for row, (name, estimate) in enumerate(final["probability_of_improvement"].items()):
        wins.plot([estimate["low"], estimate["high"]], [row, row], linewidth=6, alpha=0.4, color="0.4")
        wins.plot(estimate["value"], row, "k|", markersize=14)
        wins.text(0.02, row + 0.25, f"SF-DQN over {name}")
    wins.axvline(0.5, color="0.8", zorder=0)
    wins.set(
        xlim=(0, 1),
        ylim=(-0.5, row + 0.6),
        yticks=[],
        xlabel="probability of improvement",
        title="reacher, all 12 tasks, at the end",
    )
    for axes in (rooms, trained):
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _theory(panels: np.ndarray, result: Result) -> None:
    labels = {
        "time": ("t", "‖Θ_t − Θ*‖/‖Θ*‖"),
        "replay": ("transitions in replay", "‖Θ_T − Θ*‖/‖Θ*‖"),
        "w_error": ("‖w_0 − w*‖", "mean |Q − Q*|"),
    }
    for axes, (name, (x, y)) in zip(panels, labels.items(), strict=False):
        row = result["teacher"][name]
        axes.loglog(row["x"], row["y"], "o-")
        axes.set(xlabel=x, ylabel=y, title=f"teacher and student, slope {row['slope']:.2f}")
    rows = result["distance"]["rows"]
    for name, label in (("q", "old Q*"), ("sf_gpi", "SF-GPI's policy")):
        slope = result["distance"]["slopes"][name]
        panels[3].loglog(
            [row["distance"] for row in rows], [row[name] for row in rows], "o-", label=f"{label}: {slope:.2f}"
        )
    panels[3].set(xlabel="‖Δw‖", ylabel="distance to the new Q*", title="random MDPs")
    panels[3].legend(fontsize=8)
