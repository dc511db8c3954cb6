"""How the chain-of-thought studies are drawn, from their saved results alone."""

from __future__ import annotations

from typing import Any

from theory.lab import Result, banded, curve_of, draw_required, slope_text
from theory.page import Panel

SYMBOLS = {"alpha": "α'", "tau": "τ", "rho": "ρ", "tau_o": "τ_o", "rho_o": "ρ_o"}


def mechanism(figure: Any, result: Result) -> None:
    axes = figure.subplots()
    for i, (name, curve) in enumerate(result["curves"].items()):
        banded(axes, result["step"], curve, name, f"C{i}")
    axes.plot([0, 1000], [0.14, 0.94], "o", color="C1", mfc="none")
    axes.plot([80, 1000], [0.41, 0.05], "o", color="C2", mfc="none", label="the paper's readings")
    axes.set(xlabel="SGD step", title=f"attention at step 1, {curve['seeds']} models")
    axes.legend(fontsize=7)


def mechanism_panels(result: Result) -> list[Panel]:
    names = list(result["curves"])
    frames = {str(i): [curve_of(name, result["step"], result["curves"][name])] for i, name in enumerate(names)}
    readings = {1: ([0, 1000], [0.14, 0.94]), 2: ([80, 1000], [0.41, 0.05])}
    for i, (x, y) in readings.items():
        frames[str(i)].append({"name": "paper, read by eye", "x": x, "y": y, "dots": True})
    return [Panel("attention", "Attention over training", "SGD step", "share", {"of": names}, frames)]


def sweep(figure: Any, result: Result) -> None:
    kinds = [kind for kind in ("cot", "icl") if kind in result]
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        axes.set_yscale("log")
        for i, row in enumerate(result[kind]):
            banded(axes, result["lengths"], row, f"{SYMBOLS[result['name']]} = {row['value']:g}", f"C{i}")
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


def condition(figure: Any, result: Result) -> None:
    axes = figure.subplots()
    axes.set_yscale("log")
    for i, (name, curve) in enumerate(result["curves"].items()):
        banded(axes, result["lengths"], curve, f"{name} Condition 1", f"C{i}")
    axes.plot(101, 1.4e-2, "o", color="C0", mfc="none", label="paper: CoT")
    axes.plot(101, 5e-2, "o", color="C1", mfc="none", label="paper: ICL with")
    axes.plot([101, 101], [0.55, 0.7], "-", color="C3", label="paper: ICL without")
    axes.set(xlabel="test examples", ylabel="error", ylim=(3e-4, 1.1))
    axes.legend(fontsize=7)


def condition_panels(result: Result) -> list[Panel]:
    frames = {
        str(i): [
            curve_of(f"{kind.upper()} {name}", result["lengths"], result["curves"][f"{kind} {name}"])
            for kind in ("cot", "icl")
        ]
        for i, name in enumerate(("with", "without"))
    }
    sliders = {"Condition 1": ["with", "without"]}
    return [Panel("condition", "Condition 1", "test examples", "error", sliders, frames, log_y=True)]


def matrices(figure: Any, result: Result) -> None:
    axes = figure.subplots()
    for i, (kind, curve) in enumerate(result["curves"].items()):
        banded(axes, result["lengths"], curve, kind.upper(), f"C{i}")
    axes.set(xlabel="test examples", ylabel="error", ylim=(0, 1))
    axes.set_title(f"A₁, A₂ of the config: τ = {result['tau']:.2f}, τ_o = {result['tau_o']:.2f}", fontsize=9)
    axes.legend()


def required(figure: Any, result: Result) -> None:
    draw_required(figure, result, SYMBOLS)


def rates(figure: Any, result: Result) -> None:
    left, right = figure.subplots(1, 2)
    for i, (alpha, curve) in enumerate(zip(result["alphas"], result["loss"], strict=True)):
        banded(left, result["step"], curve, f"α = {alpha:g}", f"C{i}")
    left.axhline(result["level"], color="grey", lw=0.8)
    left.set(xlabel="SGD step", ylabel="training loss")
    left.legend(fontsize=7)
    right.loglog(result["alphas"], result["needed"]["mean"], "o-")
    right.set(xlabel="α", ylabel=f"steps to loss {result['level']:g}")
    right.set_title(slope_text(result["slope"]) + "; theorem's bound: −2", fontsize=9)


def rates_panels(result: Result) -> list[Panel]:
    frames = {
        str(i): [curve_of(f"α = {alpha:g}", result["step"], curve)]
        for i, (alpha, curve) in enumerate(zip(result["alphas"], result["loss"], strict=True))
    }
    return [Panel("rates", "Training by α", "SGD step", "loss", {"α": result["alphas"]}, frames, log_y=True)]


def layers(figure: Any, result: Result) -> None:
    axes = figure.subplots()
    banded(axes, result["step"], result["loss"], "loss", "grey")
    for i, curve in enumerate(result["layers"]):
        banded(axes, result["step"], curve, f"layer {i + 1}", f"C{i}")
        axes.plot([0, 2000], [0.35, (0.79, 0.78, 0.70)[i]], "o", color=f"C{i}", mfc="none")
    axes.set(xlabel="step", ylabel="attention on the same step and pattern", title="three layers (circles: paper)")
    axes.legend(fontsize=7)


def layers_panels(result: Result) -> list[Panel]:
    frames = {
        str(i): [curve_of(f"layer {i + 1}", result["step"], curve), curve_of("loss", result["step"], result["loss"])]
        for i, curve in enumerate(result["layers"])
    }
    sliders = {"layer": [i + 1 for i in range(len(frames))]}
    return [Panel("layers", "Three layers: attention on the same step and pattern", "step", "share", sliders, frames)]
