"""How the chain-of-thought studies are drawn, from their saved results alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from theory.lab import Result, curve_of, draw_band, draw_required, slope_text
from theory.page import Panel

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

ATTENTION_LABELS = {
    "loss": "loss",
    "same_step_same_pattern": "same step, same pattern",
    "same_step_other_pattern": "same step, other pattern",
    "other_step": "other step",
}
SYMBOLS = {"alpha": "α'", "tau": "τ", "rho": "ρ", "tau_o": "τ_o", "rho_o": "ρ_o"}


def mechanism(figure: FigureBase, result: Result) -> None:
    axes = figure.subplots()
    for i, (name, curve) in enumerate(result["curves"].items()):
        draw_band(axes, result["step"], curve, ATTENTION_LABELS[name], f"C{i}")
    axes.plot([0, 1000], [0.14, 0.94], "o", color="C1", mfc="none")
    axes.plot([80, 1000], [0.41, 0.05], "o", color="C2", mfc="none", label="the paper's readings")
    axes.set(xlabel="SGD step", title=f"attention at step 1, {curve['seeds']} models")
    axes.legend(fontsize=7)


def mechanism_panels(result: Result) -> list[Panel]:
    names = list(result["curves"])
    frames = {
        str(i): [curve_of(ATTENTION_LABELS[name], result["step"], result["curves"][name])]
        for i, name in enumerate(names)
    }
    readings = {1: ([0, 1000], [0.14, 0.94]), 2: ([80, 1000], [0.41, 0.05])}
    for i, (x, y) in readings.items():
        frames[str(i)].append({"name": "paper, read by eye", "x": x, "y": y, "dots": True})
    return [
        Panel(
            "attention", "Attention over training", "SGD step", "share", {"of": list(ATTENTION_LABELS.values())}, frames
        )
    ]


def sweep(figure: FigureBase, result: Result) -> None:
    kinds = [kind for kind in ("cot", "icl") if kind in result]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        axes.set_yscale("log")
        for i, row in enumerate(result[kind]):
            draw_band(axes, result["lengths"], row, f"{SYMBOLS[result['name']]} = {row['value']:g}", f"C{i}")
            axes.plot(101, result["readings"][kind][i], "o", color=f"C{i}", mfc="none")
        axes.set(xlabel="test examples", ylabel=f"{kind.upper()} error", ylim=(3e-4, 1))
        axes.set_title(f"{kind.upper()}, {row['seeds']} models (circles: paper)", fontsize=9)
        axes.legend(fontsize=7)


def sweep_panels(result: Result) -> list[Panel]:
    panels, name = [], SYMBOLS[result["name"]]
    for kind in ("cot", "icl"):
        frames = {}
        for i, row in enumerate(result.get(kind, [])):
            reading = {"name": "paper, read by eye", "x": [100], "y": [result["readings"][kind][i]], "dots": True}
            frames[str(i)] = [curve_of(f"{name} = {row['value']:g}", result["lengths"], row), reading]
        if frames:
            title = f"{kind.upper()} error by {name}"
            sliders = {name: result["values"]}
            id = f"{kind}-{result['name']}"
            panels.append(Panel(id, title, "test examples", "error", sliders, frames, log_y=True))
    return panels


def condition(figure: FigureBase, result: Result) -> None:
    axes = figure.subplots()
    axes.set_yscale("log")
    for i, (name, curve) in enumerate(result["curves"].items()):
        kind, condition_holds = name.split("_")
        draw_band(axes, result["lengths"], curve, f"{kind} {condition_holds} Condition 1", f"C{i}")
    axes.plot(101, 1.4e-2, "o", color="C0", mfc="none", label="paper: CoT")
    axes.plot(101, 5e-2, "o", color="C1", mfc="none", label="paper: ICL with")
    axes.plot([101, 101], [0.55, 0.7], "-", color="C3", label="paper: ICL without")
    axes.set(xlabel="test examples", ylabel="error", ylim=(3e-4, 1.1))
    axes.legend(fontsize=7)


def condition_panels(result: Result) -> list[Panel]:
    frames = {
        str(i): [
            curve_of(f"{kind.upper()} {name}", result["lengths"], result["curves"][f"{kind}_{name}"])
            for kind in ("cot", "icl")
        ]
        for i, name in enumerate(("with", "without"))
    }
    sliders = {"Condition 1": ["with", "without"]}
    return [Panel("condition", "Condition 1", "test examples", "error", sliders, frames, log_y=True)]


def matrices(figure: FigureBase, result: Result) -> None:
    axes = figure.subplots()
    for i, (kind, curve) in enumerate(result["curves"].items()):
        draw_band(axes, result["lengths"], curve, kind.upper(), f"C{i}")
    axes.set(xlabel="test examples", ylabel="error", ylim=(0, 1))
    axes.set_title(f"A₁, A₂ of the config: τ = {result['tau']:.2f}, τ_o = {result['tau_o']:.2f}", fontsize=9)
    axes.legend()


def required(figure: FigureBase, result: Result) -> None:
    draw_required(figure, result, SYMBOLS)


def rates(figure: FigureBase, result: Result) -> None:
    loss_axes, steps_axes = figure.subplots(1, 2)
    for i, (alpha, curve) in enumerate(zip(result["alphas"], result["loss"], strict=True)):
        draw_band(loss_axes, result["step"], curve, f"α = {alpha:g}", f"C{i}")
    loss_axes.axhline(result["level"], color="grey", lw=0.8)
    loss_axes.set(xlabel="SGD step", ylabel="training loss")
    loss_axes.legend(fontsize=7)
    steps_axes.loglog(result["alphas"], result["needed"]["mean"], "o-")
    steps_axes.set(xlabel="α", ylabel=f"steps to loss {result['level']:g}")
    steps_axes.set_title(slope_text(result["slope"]) + "; theorem's bound: −2", fontsize=9)


def scaling(figure: FigureBase, result: Result) -> None:
    draw_required(figure, result, {"K": "steps of a task K", "M": "patterns M"}, "loss")


def rates_panels(result: Result) -> list[Panel]:
    frames = {
        str(i): [curve_of(f"α = {alpha:g}", result["step"], curve)]
        for i, (alpha, curve) in enumerate(zip(result["alphas"], result["loss"], strict=True))
    }
    return [Panel("rates", "Training by α", "SGD step", "loss", {"α": result["alphas"]}, frames, log_y=True)]


def layers(figure: FigureBase, result: Result) -> None:
    axes = figure.subplots()
    draw_band(axes, result["step"], result["loss"], "loss", "grey")
    for i, curve in enumerate(result["layers"]):
        draw_band(axes, result["step"], curve, f"layer {i + 1}", f"C{i}")
        axes.plot([0, 2000], [0.35, (0.79, 0.78, 0.70)[i]], "o", color=f"C{i}", mfc="none")
    axes.set(xlabel="step", ylabel="attention on the same step and pattern", title="three layers (circles: paper)")
    axes.legend(fontsize=7, loc="center right")


def layers_panels(result: Result) -> list[Panel]:
    frames = {
        str(i): [curve_of(f"layer {i + 1}", result["step"], curve), curve_of("loss", result["step"], result["loss"])]
        for i, curve in enumerate(result["layers"])
    }
    sliders = {"layer": [i + 1 for i in range(len(frames))]}
    return [Panel("layers", "Three layers: attention on the same step and pattern", "step", "share", sliders, frames)]
