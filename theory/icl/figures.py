"""How the in-context classification studies are drawn, from their saved results alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from theory.lab import Result, curve_of, draw_band, draw_required, slope_text
from theory.page import Curve, Panel

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

MECHANISM_LABELS = {
    "loss": "loss",
    "query_norm": "query norm",
    "attention": "attention",
    "angle_to_mean": "angle to mean",
    "angle_to_label": "angle to label",
}
PLACE_LABELS = {"in_domain": "in domain", "out_of_domain": "out of domain"}
MECHANISM_READINGS = {  # the paper's mechanism, read by eye: start and end
    "query_norm": [0.4, 1.75],
    "attention": [0.42, 1.0],
    "angle_to_mean": [np.pi / 2, np.pi / 8],
    "angle_to_label": [np.pi / 2, np.pi / 6],
}


def mechanism(figure: FigureBase, result: Result) -> None:
    grid = figure.subplots(2, 3)
    grid[1, 2].axis("off")
    for axes, (name, curve) in zip(grid.flat, result["curves"].items(), strict=False):
        draw_band(axes, result["step"], curve, "ours", "C0")
        if name in MECHANISM_READINGS:
            axes.plot(
                [0, result["step"][-1]],
                MECHANISM_READINGS[name],
                "o",
                color="C1",
                mfc="none",
                label="paper's start, end",
            )
        axes.set(xlabel="SGD step", title=MECHANISM_LABELS[name])
        axes.legend(fontsize=7)


def mechanism_panels(result: Result) -> list[Panel]:
    names = list(result["curves"])
    frames: dict[str, list[Curve]] = {}
    for i, name in enumerate(names):
        frames[str(i)] = [curve_of(MECHANISM_LABELS[name], result["step"], result["curves"][name])]
        if name in MECHANISM_READINGS:
            reading = {
                "name": "paper, read by eye",
                "x": [0, result["step"][-1]],
                "y": MECHANISM_READINGS[name],
                "dots": True,
            }
            frames[str(i)].append(reading)
    return [
        Panel(
            "mechanism", "Mechanism over training", "SGD step", "value", {"of": list(MECHANISM_LABELS.values())}, frames
        )
    ]


def unseen(figure: FigureBase, result: Result) -> None:
    axes = figure.subplots()
    axes.set_yscale("log")
    for i, (place, measures) in enumerate(result["places"].items()):
        draw_band(axes, result["lengths"], measures["error"], f"{place}: error", f"C{i}")
        axes.plot(result["lengths"], measures["hinge"]["mean"], ":", color=f"C{i}", label=f"{place}: hinge")
    axes.axhline(1e-3, color="grey", lw=0.8)
    axes.set(xlabel="context length", ylim=(1e-5, 1), title=f"{measures['error']['seeds']} models")
    axes.legend(fontsize=7)


def unseen_panels(result: Result) -> list[Panel]:
    places, measures = list(result["places"]), ["error", "hinge"]
    frames = {
        f"{i},{j}": [curve_of(measure, result["lengths"], result["places"][place][measure])]
        for i, place in enumerate(places)
        for j, measure in enumerate(measures)
    }
    sliders = {"patterns": places, "measure": measures}
    return [Panel("unseen", "Unseen tasks", "context length", "value", sliders, frames, log_y=True)]


def tasks_seen(figure: FigureBase, result: Result) -> None:
    axes = figure.subplots()
    axes.set_yscale("log")
    for i, (count, row) in enumerate(zip(result["counts"], result["rows"], strict=True)):
        draw_band(axes, result["lengths"], row, f"{count} training tasks", f"C{i}")
    axes.set(xlabel="context length", ylabel="error on unseen tasks", ylim=(1e-5, 1))
    axes.legend(fontsize=7)


def s1(figure: FigureBase, result: Result) -> None:
    for axes, (kind, rows) in zip(figure.subplots(1, 2), result["kinds"].items(), strict=True):
        axes.set_yscale("log")
        for i, (value, row) in enumerate(zip(result["values"], rows, strict=True)):
            draw_band(axes, result["lengths"], row, f"S₁ = {value:g}", f"C{i}")
            axes.plot(20, result["readings"][i], "o", color=f"C{i}", mfc="none")
        axes.set(xlabel="context length", ylabel="error out of domain", ylim=(1e-4, 1))
        axes.set_title(f"{kind} patterns (circles: paper)", fontsize=9)
        axes.legend(fontsize=7)


def s1_panels(result: Result) -> list[Panel]:
    kinds, frames = list(result["kinds"]), {}
    for i, kind in enumerate(kinds):
        for j, value in enumerate(result["values"]):
            reading = {"name": "paper, read by eye", "x": [20], "y": [result["readings"][j]], "dots": True}
            frames[f"{i},{j}"] = [curve_of(f"S1 = {value:g}", result["lengths"], result["kinds"][kind][j]), reading]
    sliders = {"patterns": kinds, "S1": result["values"]}
    return [Panel("s1", "Out of domain by S1", "context length", "error", sliders, frames, log_y=True)]


def alpha(figure: FigureBase, result: Result) -> None:
    for axes, (place, rows) in zip(figure.subplots(1, 2), result["places"].items(), strict=True):
        axes.set_yscale("log")
        for i, (value, row) in enumerate(zip(result["values"], rows, strict=True)):
            draw_band(axes, result["lengths"], row, f"α' = {value:g}", f"C{i}")
            if value >= 0.8:
                reading = result["readings"][place][i - len(rows) + 3]
                axes.plot(20, reading, "o", color=f"C{i}", mfc="none")
        axes.set(xlabel="context length", ylabel=f"error, {PLACE_LABELS[place]}", ylim=(1e-5, 1))
        axes.legend(fontsize=7)


def alpha_panels(result: Result) -> list[Panel]:
    frames = {
        f"{i},{j}": [curve_of(f"α' = {value:g}", result["lengths"], rows[j])]
        for i, rows in enumerate(result["places"].values())
        for j, value in enumerate(result["values"])
    }
    sliders = {"place": [PLACE_LABELS[place] for place in result["places"]], "α'": result["values"]}
    return [Panel("alpha", "Error by α'", "context length", "error", sliders, frames, log_y=True)]


def classical(figure: FigureBase, result: Result) -> None:
    for axes_row, (kind, alphas) in zip(figure.subplots(2, 2), result["kinds"].items(), strict=True):
        for axes, (value, rows) in zip(axes_row, alphas.items(), strict=True):
            axes.set_yscale("log")
            for i, (name, row) in enumerate(rows.items()):
                draw_band(axes, result["lengths"], row, name.replace("_", " "), f"C{i}")
                axes.plot(20.2, result["readings"][value][name], "o", color=f"C{i}", mfc="none")
            axes.set(xlabel="examples", ylabel="error", ylim=(1e-4, 1))
            axes.set_title(f"{kind} patterns, α' = {value} (circles: paper)", fontsize=9)
            axes.legend(fontsize=7)


def classical_panels(result: Result) -> list[Panel]:
    kinds = list(result["kinds"])
    alphas = list(result["kinds"][kinds[0]])
    frames = {
        f"{k},{i}": [
            curve_of(name.replace("_", " "), result["lengths"], row)
            for name, row in result["kinds"][kind][value].items()
        ]
        for k, kind in enumerate(kinds)
        for i, value in enumerate(alphas)
    }
    sliders: dict[str, list[str]] = {"patterns": kinds, "α'": alphas}
    return [Panel("classical", "Against classical learners", "examples", "error", sliders, frames, log_y=True)]


def required(figure: FigureBase, result: Result) -> None:
    draw_required(figure, result, {"unseen": "α', unseen tasks", "mean": "α', out of domain", "training": "α"})


def scaling(figure: FigureBase, result: Result) -> None:
    draw_required(figure, result, {"M1": "M1"}, "loss")


def pruning(figure: FigureBase, result: Result) -> None:
    hinge_axes, error_axes, norm_axes = figure.subplots(1, 3)
    for axes, name in ((hinge_axes, "hinge"), (error_axes, "error")):
        axes.set_yscale("log")
        for i, (order, measures) in enumerate(result["orders"].items()):
            draw_band(axes, result["fractions"], measures[name], f"{order} first", f"C{i}")
        axes.set(xlabel="fraction of neurons pruned", ylabel={"hinge": "hinge loss", "error": "0/1 error"}[name])
        axes.legend(fontsize=7)
    hinge_axes.plot([0, 0.16, 0.4], [7e-3, 7e-3, 3e-2], "o", color="C0", mfc="none")
    hinge_axes.plot(0.4, 4.5e-2, "o", color="C1", mfc="none")
    norms = result["norms"]
    draw_band(norm_axes, list(np.linspace(0, 1, len(norms["mean"]))), norms, "ours", "C0")
    norm_axes.set(xlabel="neurons, by norm", ylabel="norm of the row of W_O")
    norm_axes.set_title("paper: .15 → .5 at 17 %", fontsize=9)


def pruning_panels(result: Result) -> list[Panel]:
    orders = list(result["orders"])
    frames = {
        f"{i},{j}": [curve_of(f"{order} first", result["fractions"], result["orders"][order][name])]
        for i, order in enumerate(orders)
        for j, name in enumerate(("hinge", "error"))
    }
    sliders = {"order": orders, "measure": ["hinge", "0/1 error"]}
    return [Panel("pruning", "Pruning neurons", "fraction pruned", "value", sliders, frames, log_y=True)]


def rates(figure: FigureBase, result: Result) -> None:
    for axes, (name, fit) in zip(figure.subplots(1, 2), result["fits"].items(), strict=True):
        axes.loglog(fit["values"], fit["needed"]["mean"], "o-")
        axes.set(xlabel={"alpha": "α", "beta": "β"}[name], ylabel=f"steps to loss {result['level']:g}")
        axes.set_title(slope_text(fit["slope"]) + "; theorem's: −2/3", fontsize=9)


def layers(figure: FigureBase, result: Result) -> None:
    loss_axes, error_axes = figure.subplots(1, 2)
    draw_band(loss_axes, result["step"], result["loss"], "hinge loss", "C0")
    loss_axes.set(xlabel="step", ylabel="training loss", title="three layers, two heads")
    names = list(result["places"])
    errors = [result["places"][name]["error"] for name in names]
    mean = np.array([error["mean"] for error in errors])
    spread = np.array([[error["mean"] - max(error["low"], 0), error["high"] - error["mean"]] for error in errors]).T
    error_axes.errorbar(range(len(names)), mean, spread, fmt="o", capsize=3, label="ours")
    error_axes.plot(range(1, 6), result["readings"], "o", color="C1", mfc="none", label="paper")
    error_axes.set(xticks=range(len(names)), ylabel="error, context 20", yscale="log")
    error_axes.set_xticklabels([_place_label(name) for name in names], fontsize=7)
    error_axes.legend(fontsize=7)


def _place_label(name: str) -> str:
    """ "S₁ = 0.5" of "s1_0.5"."""
    return name.replace("s1_", "S₁ = ")
