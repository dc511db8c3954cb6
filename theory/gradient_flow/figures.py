"""How the gradient-flow studies are drawn, from their saved results alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from theory.lab import Result, draw_band, slope_text
from theory.page import Panel

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

DATA_LABELS = {
    "gaussian_exact": "Gaussian, exact moments",
    "student_t_estimated": "Student-t x, tanh labels, estimated",
}


def flows(figure: FigureBase, result: Result) -> None:
    for axes, (name, instance_result) in zip(figure.subplots(1, 2), result.items(), strict=True):
        excess = np.maximum(np.array(instance_result["loss"]) - instance_result["least_loss"], 1e-16)
        axes.semilogy(instance_result["times"], excess.T, lw=0.8)
        reached, drift = f"{instance_result['reached']} of {instance_result['flows']}", instance_result["drift"]
        axes.set(title=f"instance {name}: {reached}, drift {drift:.0e}", xlabel="t")
        axes.set_ylabel("L − L*")


def flows_panels(result: Result) -> list[Panel]:
    frames = {}
    for i, instance_result in enumerate(result.values()):
        for j, loss in enumerate(instance_result["loss"]):
            frames[f"{i},{j}"] = [
                {"name": "L(t)", "x": instance_result["times"], "y": loss},
                {"name": "L*", "x": [0, instance_result["times"][-1]], "y": [instance_result["least_loss"]] * 2},
            ]
    sliders: dict[str, list[int] | list[str]] = {
        "instance": list(result),
        "start": list(range(len(next(iter(result.values()))["loss"]))),
    }
    return [Panel("flows", "Loss along the flow", "t", "loss", sliders, frames)]


def critical(figure: FigureBase, result: Result) -> None:
    axes = figure.subplots()
    for offset, name in enumerate(("I", "II")):
        for point in result[name]:
            values = point["eigenvalues"]
            axes.plot(values, [point["loss"]] * len(values), "os"[offset], label=f"{name}: index {point['index']}")
    axes.axvline(0, color="grey", lw=0.8)
    axes.set(xlabel="Hessian eigenvalues", ylabel="loss at the critical point", title="critical points found")
    axes.legend(fontsize=8)


def phase(figure: FigureBase, result: Result) -> None:
    plane_axes, product_axes = figure.subplots(1, 2)
    for i, curve in enumerate(result["curves"]):
        for u, U in zip(curve["u"], curve["U"], strict=True):
            plane_axes.plot(u, U, color=f"C{i}", lw=1)
        plane_axes.plot([], [], color=f"C{i}", label=f"c = {curve['c']:g}")
        product_axes.plot(result["times"], np.array(curve["P"]).T, color=f"C{i}", lw=0.8)
    branch = np.linspace(0.2, 3, 200)
    for sign in (1, -1):
        plane_axes.plot(sign * branch, sign * result["optimum"] / branch, "k--", lw=1)
    plane_axes.set(xlim=(-3, 3), ylim=(-3, 3), xlabel="u", ylabel="U", title="u² − U² = c; dashed: uU = 1/γ")
    plane_axes.legend(fontsize=7)
    product_axes.axhline(result["optimum"], color="k", ls="--", lw=1)
    product_axes.set(xlabel="t", ylabel="P = uU", ylim=(-3, 3), title=f"largest gap to the 1-D ODE {result['gap']:.0e}")


def phase_panels(result: Result) -> list[Panel]:
    sliders = {"c": [curve["c"] for curve in result["curves"]]}
    paths, products = {}, {}
    for i, curve in enumerate(result["curves"]):
        starts = range(len(curve["u"]))
        paths[str(i)] = [{"name": "", "x": curve["u"][j], "y": curve["U"][j]} for j in starts]
        products[str(i)] = [{"name": "", "x": result["times"], "y": curve["P"][j]} for j in starts]
    return [
        Panel("phase", "Phase portrait on u² − U² = c", "u", "U", sliders, paths),
        Panel("product", "P(t) = uU", "t", "P", sliders, products, note="Only c = 0 with P ≤ 0 ends at the saddle."),
    ]


def basin(figure: FigureBase, result: Result) -> None:
    time_axes, family_axes = figure.subplots(1, 2)
    axis, count = result["axis"], len(result["axis"])
    extent = (axis[0], axis[-1], axis[0], axis[-1])
    time = np.array([np.nan if t is None else t for t in result["time"]]).reshape(count, count)
    image = time_axes.imshow(time, origin="lower", extent=extent, cmap="viridis")
    figure.colorbar(image, ax=time_axes, label="t to within 1e-6 of L*")
    time_axes.set(xlabel="u", ylabel="U", title="instance I, d = 1 (white: the saddle's)")
    family = np.array(result["family"]).reshape(count, count)
    family_axes.imshow(family, origin="lower", extent=extent, cmap="coolwarm", vmin=0, vmax=2.4)
    family_axes.set(xlabel="v = U/0.7", ylabel="p = q/0.7", title="instance II: vU (light), pq (red)")


def tolerance(figure: FigureBase, result: Result) -> None:
    axes = figure.subplots()
    rtol = [row["rtol"] for row in result["rows"]]
    for name in ("I", "II"):
        axes.loglog(rtol, [row[name] for row in result["rows"]], "o-", label=f"instance {name}")
    axes.loglog(rtol, rtol, "k:", label="rtol")
    axes.set(xlabel="relative tolerance of DOP853", ylabel="drift of the invariant")
    axes.legend()


def spectrum(figure: FigureBase, result: Result) -> None:
    for axes, (name, instance_result) in zip(figure.subplots(1, 2), result.items(), strict=True):
        axes.plot(instance_result["times"], np.array(instance_result["eigenvalues"]).T)
        axes.axhline(0, color="grey", lw=0.8)
        axes.set(xlabel="t", ylabel="Hessian eigenvalues", title=f"instance {name}: saddle to optimum")


def spectrum_panels(result: Result) -> list[Panel]:
    frames = {}
    for i, instance_result in enumerate(result.values()):
        frames[str(i)] = [
            {"name": f"λ{j + 1}", "x": instance_result["times"], "y": values}
            for j, values in enumerate(instance_result["eigenvalues"])
        ]
    sliders = {"instance": list(result)}
    return [Panel("spectrum", "Hessian eigenvalues along a flow", "t", "eigenvalue", sliders, frames)]


def escape(figure: FigureBase, result: Result) -> None:
    axes, time, slope = figure.subplots(), result["time"], result["slope"]
    low, mean, high = (np.array(time[name], dtype=float) for name in ("low", "mean", "high"))
    axes.semilogx(result["scales"], mean, "o-")
    axes.fill_between(result["scales"], low, high, alpha=0.3)
    axes.set(xlabel="scale of the start", ylabel="t to half the excess loss")
    axes.set_title(f"{slope_text(slope, 3)}; 1/λ² = {result['expected']:g}")


def escape_panels(result: Result) -> list[Panel]:
    curve = {"name": "escape time", "x": result["scales"], "y": result["time"]["mean"]}
    curve |= {"low": result["time"]["low"], "high": result["time"]["high"]}
    return [Panel("escape", "Escape from the saddle", "scale of the start", "t", {}, {"": [curve]}, log_x=True)]


def stochastic(figure: FigureBase, result: Result) -> None:
    loss_axes, gap_axes = figure.subplots(1, 2)
    for i, (rate, curve) in enumerate(zip(result["rates"], result["curves"], strict=True)):
        draw_band(loss_axes, curve["times"], curve["sgd"], f"SGD, rate {rate:g}", f"C{i}")
    loss_axes.plot(result["ode"]["times"], result["ode"]["loss"], "k--", label="ODE")
    loss_axes.set(xlabel="t = step × rate", ylabel="loss")
    loss_axes.legend(fontsize=8)
    mean, high = (np.array(result["gap"][name], dtype=float) for name in ("mean", "high"))
    gap_axes.errorbar(result["rates"], mean, high - mean, fmt="o-", capsize=3)
    gap_axes.set(xscale="log", yscale="log", xlabel="rate", ylabel="max_t ‖θ_SGD − θ_ODE‖")
    gap_axes.set_title(slope_text(result["slope"]))


def stochastic_panels(result: Result) -> list[Panel]:
    ode = {"name": "ODE", "x": result["ode"]["times"], "y": result["ode"]["loss"]}
    frames = {}
    for i, curve in enumerate(result["curves"]):
        sgd = {"name": "SGD", "x": curve["times"], "y": curve["sgd"]["mean"]}
        frames[str(i)] = [ode, sgd | {"low": curve["sgd"]["low"], "high": curve["sgd"]["high"]}]
    return [Panel("sgd", "SGD and the ODE", "t = step × rate", "loss", {"rate": result["rates"]}, frames)]


def general(figure: FigureBase, result: Result) -> None:
    for axes, (name, data_result) in zip(figure.subplots(1, 2), result["data"].items(), strict=True):
        axes.plot(result["times"], np.array(data_result["loss"]).T, "C0", lw=0.8)
        axes.plot(result["times"], np.array(data_result["keys_queries_loss"]).T, "C1", lw=0.8)
        if name == "gaussian_exact":
            axes.axhline(result["least_loss"], color="k", ls="--", lw=1)
        drift = max(data_result["drift"], data_result["keys_queries_drift"])
        axes.set(
            xlabel="t",
            ylabel="loss",
            title=f"{DATA_LABELS[name]}\ndrift {drift:.0e}\nblue W, orange KᵀQ; dashed: L* of I",
        )
        axes.title.set_fontsize(9)


def monte_carlo(figure: FigureBase, result: Result) -> None:
    axes = figure.subplots()
    for name in ("I", "II"):
        rows = [row for row in result["rows"] if row["name"] == name]
        off = [row["simulated"] - row["loss"] for row in rows]
        axes.errorbar([row["loss"] for row in rows], off, [2 * row["error"] for row in rows], fmt="o", label=name)
    axes.axhline(0, color="k", lw=0.8)
    axes.set(xlabel="loss by the formula", ylabel="simulated less formula, ± 2 s.e.")
    axes.legend(title="instance")
