"""A run made of studies: each computes one figure's data, states what it claims, and draws from what was saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import field_validator
from scipy import stats

from theory.page import Panel, write_page
from training.run import Job, JobConfig, Run

Result = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """One figure. ``compute(config, run)`` gives plain lists and numbers; ``check(result, run)`` states its claims;
    ``draw(figure, result)`` fills a matplotlib figure; ``panels(result)`` are its part of the interactive page."""

    compute: Callable[[Any, Run], Result]
    draw: Callable[[Any, Result], None]
    check: Callable[[Result, Run], None] | None = None
    panels: Callable[[Result], list[Panel]] | None = None
    size: tuple[float, float] = (6, 4)


class LabConfig(JobConfig):
    """``studies``: the figures to make, by name; all of them if empty."""

    studies: tuple[str, ...] = ()


def lab(
    name: str,
    summary: str,
    config: type[LabConfig],
    studies: Mapping[str, Study],
    presets: Mapping[str, dict[str, Any]],
    minutes: Callable[[Any], float],
    page: tuple[str, str],
) -> Job:
    """A job that runs ``studies`` in order. ``minutes(config)``: to expect on two cores; ``page``: title, intro."""

    class Config(config):  # type: ignore[misc, valid-type]
        @field_validator("studies")
        @classmethod
        def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
            unknown = [each for each in value if each not in studies]
            if unknown:
                raise ValueError(f"no study {', '.join(unknown)}; there are {', '.join(studies)}")
            return value

    def compute(each: str, config: Any, run: Run) -> Any:
        return plain(studies[each].compute(config, run))

    def run(config: Any, run: Run) -> Result:
        chosen = config.studies or tuple(studies)
        run.emit("message", f"expect about {minutes(config):.0f} min on two cores for all studies")
        results: Result = {}
        for each in chosen:
            results[each] = run.step(each, partial(compute, each, config, run))
            check = studies[each].check
            if check is not None:
                check(results[each], run)
        return {"studies": results}

    def draw(folder: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        results = json.loads((folder / "result.json").read_text())["studies"]
        panels: list[Panel] = []
        for each, result in results.items():
            study = studies[each]
            figure = plt.figure(figsize=study.size, layout="constrained")
            study.draw(figure, result)
            figure.savefig(folder / "figures" / f"{each}.png", dpi=110)
            plt.close(figure)
            panels += study.panels(result) if study.panels else []
        _gallery(studies, results).savefig(folder / "figures" / "gallery.png", dpi=45)
        plt.close("all")
        if panels:
            write_page(folder / "figures" / "page.html", *page, panels)

    return Job(name=name, summary=summary, Config=Config, run=run, presets=presets, draw=draw)


def _gallery(studies: Mapping[str, Study], results: Result) -> Any:
    """All figures of a run in one, three a row."""
    from matplotlib import pyplot as plt

    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = plt.figure(figsize=(8 * columns, 4.3 * rows), layout="constrained")
    for part, (each, result) in zip(
        figure.subfigures(rows, columns, squeeze=False).flat, results.items(), strict=False
    ):
        studies[each].draw(part, result)
    return figure


def plain(value: Any) -> Any:
    """``value`` with arrays and NumPy numbers as lists and numbers, which checkpoints and JSON hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def band(values: Any, axis: int = 0) -> Result:
    """Mean and 95 % Student interval over ``axis`` (seeds): {"mean", "low", "high"}."""
    values = np.asarray(values, dtype=float)
    count, mean = values.shape[axis], values.mean(axis)
    half = np.zeros_like(mean)
    if count > 1:
        half = stats.t.ppf(0.975, count - 1) * values.std(axis, ddof=1) / np.sqrt(count)
    return {"mean": mean.tolist(), "low": (mean - half).tolist(), "high": (mean + half).tolist(), "seeds": count}


def loglog(x: Any, y: Any) -> Result:
    """The slope of log y against log x: each row of y [seeds, len(x)] is fitted, then `band` over seeds.

    Points that are not finite and positive are left out; a seed with fewer than three left is, too.
    """
    slopes = []
    for row in np.atleast_2d(np.asarray(y, dtype=float)):
        kept = np.isfinite(row) & (row > 0)
        if kept.sum() >= 3:
            slopes.append(np.polyfit(np.log(np.asarray(x, float)[kept]), np.log(row[kept]), 1)[0])
    return band(slopes) if slopes else {"mean": None, "low": None, "high": None, "seeds": 0}


def first_below(x: Sequence[float], errors: Any, level: float) -> float:
    """Where errors [len(x)] first come down to ``level``, between x by log-log interpolation; NaN if never."""
    errors = np.asarray(errors, dtype=float)
    below = np.flatnonzero(errors <= level)
    if not len(below):
        return float("nan")
    i = below[0]
    if i == 0:
        return float(x[0])
    y = np.log(np.maximum(errors[i - 1 : i + 1], 1e-4))
    part = (y[0] - np.log(level)) / (y[0] - y[1])
    return float(np.exp(np.log(x[i - 1]) + part * np.log(x[i] / x[i - 1])))


def required_fit(values: Any, needed: Any, expected: float, what: str) -> Result:
    """``needed`` [seeds, values] of ``what`` against ``values``: band and slope, beside the theorem's exponent."""
    fit = {"needed": band(needed), "slope": loglog(values, needed)}
    return {"values": values, "what": what, "expected": expected} | fit


def draw_required(figure: Any, result: Result, symbols: Mapping[str, str]) -> None:
    """{"error", "fits": {name: `required_fit`}}."""
    for axes, (name, fit) in zip(figure.subplots(1, len(result["fits"])), result["fits"].items(), strict=True):
        mean = np.array([np.nan if m is None else m for m in fit["needed"]["mean"]], dtype=float)
        values, expected = np.array(fit["values"]), fit["expected"]
        axes.loglog(values, mean, "o-")
        axes.loglog(values, np.nanmin(mean) * (values / values[-1]) ** expected, "k:")
        axes.set(xlabel=symbols[name], ylabel=f"{fit['what']} to error {result['error']:g}")
        axes.set_title(f"{slope_text(fit['slope'])}; dotted: {expected:g}".replace(": -", ": −"), fontsize=9)


def banded(axes: Any, x: list[float], curve: Result, label: str, colour: str) -> None:
    """A mean and its interval on matplotlib axes."""
    floor = 1e-5 if axes.get_yscale() == "log" else None
    low, mean, high = (np.maximum(curve[k], floor) if floor else curve[k] for k in ("low", "mean", "high"))
    axes.plot(x, mean, color=colour, label=label, lw=1.5)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


def curve_of(name: str, x: list[float], curve: Result) -> dict[str, Any]:
    """The same for a page's panel."""
    return {"name": name, "x": x, "y": curve["mean"], "low": curve["low"], "high": curve["high"]}


def slope_text(slope: Result) -> str:
    if slope["mean"] is None:
        return "no slope"
    return f"slope {slope['mean']:.2f} [{slope['low']:.2f}, {slope['high']:.2f}]"


def draw_speed(figure: Any, result: Result) -> None:
    """{"milliseconds", "ratio"}, by way of training."""
    axes = figure.subplots()
    names = list(result["milliseconds"])
    axes.barh(names, [result["milliseconds"][name] for name in names])
    for i, name in enumerate(names):
        axes.text(result["milliseconds"][name], i, f" ×{result['ratio'][name]:.1f}", va="center")
    axes.set(xlabel="ms a run and SGD step")
