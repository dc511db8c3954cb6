"""The claims of ADRL (arXiv:2504.21326), from the results of ``rl.*``. Differences are paired by data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.research.claims import Claim, against, cell_text, estimate, number, positive
from benchmarks.tables import table
from iro_server import JsonObject

RIVALS = ("BCQ", "BCQf")


def doses(result: JsonObject) -> JsonObject:
    """Claims, and a row for each interaction and n: exact values and the settings that tuning chose."""
    rows: list[Claim] = []
    by_interaction: dict[float, list[JsonObject]] = {}
    for row in result["rows"]:
        by_interaction.setdefault(row["interaction"], []).append(row)
    for interaction, cells in by_interaction.items():
        for rival in RIVALS:
            rows += [_gap(cell, rival) for cell in cells] + [_trend(interaction, cells, rival)]
    return {"claims": rows, "rows": [_without_samples(row) for row in result["rows"]]}


def gaps(row: JsonObject, rival: str) -> np.ndarray:
    """[data sets]: the true value of AD-BCQ less the rival's."""
    return np.subtract(row["learners"]["AD-BCQ"]["values"], row["learners"][rival]["values"])


def _gap(row: JsonObject, rival: str) -> Claim:
    gap = estimate(gaps(row, rival))
    paper = f"interaction {row['interaction']:g}, {row['doses']} × {row['doses']} doses: AD-BCQ above {rival}"
    return positive(paper, [gap], against(gap, 0))


def _trend(interaction: float, rows: Sequence[JsonObject], rival: str) -> Claim:
    """The slope over n of each data set's gap."""
    by_size = np.array([gaps(row, rival) for row in rows])
    slope = estimate(np.polyfit([row["doses"] for row in rows], by_size, 1)[0])
    paper = f"interaction {interaction:g}: the gap to {rival} grows with the number of doses (slope for one dose)"
    return positive(paper, [slope], against(slope, 0), "the interval of the slope includes zero")


def _without_samples(row: JsonObject) -> JsonObject:
    learners = {
        name: {"value": estimate(learner["values"])} | {key: learner[key] for key in ("updates", "threshold")}
        for name, learner in row["learners"].items()
    }
    return row | {"learners": learners}


def dose_values(content: JsonObject) -> str:
    """The exact value of each learner's policy."""
    learners = list(content["rows"][0]["learners"])
    head = ["interaction, n", "optimal", "clinicians", "logged transitions", *learners, "updates, threshold"]
    rows = []
    for row in content["rows"]:
        settings = (f"{learner['updates']}, {learner['threshold']:g}" for learner in row["learners"].values())
        rows.append(
            [
                f"{row['interaction']:g}, {row['doses']}",
                number(row["optimal"]),
                number(row["behaviour"]),
                f"{row['transitions']:.0f}",
                *(cell_text(learner["value"]) for learner in row["learners"].values()),
                "; ".join(settings),
            ]
        )
    return table(head, rows)


def doses_figure(content: JsonObject, path: Path) -> None:
    """True values against n, one panel for each interaction."""
    rows = content["rows"]
    interactions = list(dict.fromkeys(row["interaction"] for row in rows))
    figure = Figure(figsize=(4.5 * len(interactions), 3.6), layout="constrained")
    panels = figure.subplots(1, len(interactions), squeeze=False)[0]
    for axes, interaction in zip(panels, interactions, strict=True):
        of_panel = [row for row in rows if row["interaction"] == interaction]
        sizes = [row["doses"] for row in of_panel]
        for learner in of_panel[0]["learners"]:
            _draw(axes, sizes, [row["learners"][learner]["value"] for row in of_panel], learner)
        axes.plot(sizes, [row["optimal"] for row in of_panel], "k--", label="optimal")
        axes.plot(sizes, [row["behaviour"] for row in of_panel], "k:", label="clinicians")
        axes.set(
            title=f"interaction {interaction:g}", xlabel="doses of each drug, n", ylabel="true value", xticks=sizes
        )
    np.atleast_1d(panels)[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def pointmass(result: JsonObject) -> JsonObject:
    """Claims on areas and last evaluations, paired by seed; the mean curve of each agent."""
    config, curves = result["config"], {name: np.array(curve) for name, curve in result["curves"].items()}
    rows: list[Claim] = []
    for name, returns in curves.items():
        bins, _, agent = name.partition(", ")
        if not agent.startswith("AD-DQN"):
            continue
        gaps = returns - curves[f"{bins}, DecQN"]
        for quantity, gap in (("area", gaps.mean(axis=1)), ("final return", gaps[:, -1])):
            cell = estimate(gap)
            rows.append(positive(f"{bins} bins: {quantity}, {agent} above DecQN", [cell], against(cell, 0)))
    summary = {
        name: {"area": estimate(returns.mean(axis=1)), "final": estimate(returns[:, -1])}
        for name, returns in curves.items()
    }
    steps = [config["steps"] * (i + 1) // config["evaluations"] for i in range(config["evaluations"])]
    points = {name: [estimate(column) for column in returns.T] for name, returns in curves.items()}
    return {"claims": rows, "summary": summary, "steps": steps, "curves": points}


def returns(content: JsonObject) -> str:
    """The area under each agent's curve (its mean height), and its last evaluation."""
    rows = [[name, cell_text(row["area"]), cell_text(row["final"])] for name, row in content["summary"].items()]
    return table(["bins, agent", "area", "final"], rows)


def returns_figure(content: JsonObject, path: Path) -> None:
    """Mean greedy returns during training."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, points in content["curves"].items():
        _draw(axes, content["steps"], points, name)
    axes.set(xlabel="environment steps", ylabel="greedy return")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, x: Sequence[float], points: Sequence[JsonObject], label: str) -> None:
    """Means as a line, intervals as a band."""
    (line,) = axes.plot(x, [point["mean"] for point in points], marker="o", markersize=3, label=label)
    low, high = ([point[side] for point in points] for side in ("low", "high"))
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
