"""Figures of an alignment run, from its result.json alone: ``python -m training.iro.figures RUN_FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def draw(folder: Path) -> None:
    """Write figures/reward.png and figures/correlation.png."""
    result = json.loads((folder / "result.json").read_text())
    (folder / "figures").mkdir(exist_ok=True)
    _reward(result, folder / "figures" / "reward.png")
    _correlation(result, folder / "figures" / "correlation.png")


def _reward(result: dict, path: Path) -> None:
    history = result["history"]
    best_of_n, frozen = (_floats([result["baseline"]], key)[0] for key in ("valid_best_of_n", "full_valid_mean_reward"))
    steps = [row["step"] for row in history]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for key, half_width, label in (
        ("valid_grader_pick", "valid_grader_pick_half_width", "guided, best of the finals by the grader"),
        ("full_valid_mean_reward", "full_valid_half_width", "guided, picked by the values (no grader call)"),
    ):
        axes.errorbar(steps, _floats(history, key), _floats(history, half_width), marker="o", capsize=3, label=label)
    axes.axhline(best_of_n, color="grey", linestyle="--", label="frozen model, best of N by the grader")
    axes.axhline(frozen, color="grey", linestyle=":", label="frozen model")
    axes.set(xlabel="iteration", ylabel="held-out reward (95 % interval)", xticks=steps)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _correlation(result: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for row in result["history"]:
        by_position = np.array(row["by_position"]["stack_correlation"], dtype=float)
        finite = np.isfinite(by_position)  # at every fourth token and the last
        position = np.arange(1, len(by_position) + 1)
        axes.plot(position[finite], by_position[finite], label=f"ΣV/β after iteration {row['step']}")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(xlabel="token of the response", ylabel="correlation with the reward, within prompts")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _floats(rows: list[dict], key: str) -> np.ndarray:
    """NaN where the row has none: nothing was graded, or the row is an earlier version's."""
    return np.array([row.get(key) for row in rows], dtype=float)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
