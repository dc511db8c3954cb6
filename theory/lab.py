"""A run made of studies: each computes one figure's data, checks its claims, and draws from what was saved."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, field_validator, model_validator

from theory.page import Curve, Panel, write_page
from training import intervals
from training.run import Job, JobConfig, Run, check_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

Result = dict[str, Any]
GALLERY_DPI = 120
SPEED_LABELS = {
    "batch_of_20_runs": "batch of 20 runs",
    "same_code_one_run": "same code, one run",
    "plain_autograd_one_run": "plain autograd, one run",
}


class LabConfig(JobConfig):
    """The figures, and what they need."""

    studies: tuple[str, ...] = Field((), description="The figures to make, by name; all of them if empty.")


StudyConfig = TypeVar("StudyConfig", bound=LabConfig)


@dataclass(frozen=True)
class Study(Generic[StudyConfig]):
    """One figure. ``compute(config, run)`` gives its data; ``check(result, run)`` checks its claims;
    ``draw(figure, result)`` fills a matplotlib figure; ``panels(result)`` are its part of the interactive page;
    ``requires(config)`` raises ValueError for a config with which the study cannot be computed."""

    compute: Callable[[StudyConfig, Run], Result]
    draw: Callable[[FigureBase, Result], None]
    check: Callable[[Result, Run], None] | None = None
    panels: Callable[[Result], list[Panel]] | None = None
    size: tuple[float, float] = (6, 4)
    requires: Callable[[StudyConfig], object] | None = None


def lab(
    name: str,
    summary: str,
    config: type[StudyConfig],
    studies: Mapping[str, Study[StudyConfig]],
    presets: Mapping[str, dict[str, Any]],
    minutes: Callable[[StudyConfig], float],
    page: tuple[str, str],
    gallery: Sequence[str] = (),
) -> Job:
    """A job that runs ``studies`` in order.

    ``minutes(config)``: the expected duration on two cores; ``page``: title and introduction of the interactive page;
    ``gallery``: the studies of the figure that shows several, all of them if empty.
    """

    class CheckedConfig(config):  # type: ignore[misc, valid-type]
        @field_validator("studies")
        @classmethod
        def _check_studies(cls, names: tuple[str, ...]) -> tuple[str, ...]:
            check_names(names, studies, "study")
            return names

        @model_validator(mode="after")
        def _check_requirements(self) -> CheckedConfig:
            for name in self.studies or studies:
                requires = studies[name].requires
                try:
                    if requires is not None:
                        requires(self)
                except ValueError as error:
                    raise ValueError(f"study {name}: {error}; change it or leave the study out") from error
            return self

    def compute(study: str, config: StudyConfig, run: Run) -> Result:
        return plain(studies[study].compute(config, run))

    def run(config: StudyConfig, run: Run) -> Result:
        run.emit("message", f"expect about {minutes(config):.0f} min on two cores for all studies")
        results: Result = {}
        for study in config.studies or tuple(studies):
            results[study] = run.step(study, partial(compute, study, config, run))
            check = studies[study].check
            if check is not None:
                check(results[study], run)
        return {"studies": results}

    def draw(folder: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        results = json.loads((folder / "result.json").read_text())["studies"]
        panels: list[Panel] = []
        for study_name, result in results.items():
            study = studies[study_name]
            figure = plt.figure(figsize=study.size, layout="constrained")
            study.draw(figure, result)
            figure.savefig(folder / "figures" / f"{study_name}.png", dpi=110)
            plt.close(figure)
            panels += study.panels(result) if study.panels else []
        shown = {study: results[study] for study in gallery if study in results} or results
        _gallery(studies, shown).savefig(folder / "figures" / "gallery.png", dpi=GALLERY_DPI)
        plt.close("all")
        if panels:
            write_page(folder / "figures" / "page.html", *page, panels)

    return Job(name=name, summary=summary, Config=CheckedConfig, run=run, presets=presets, draw=draw)


def _gallery(studies: Mapping[str, Study[StudyConfig]], results: Result) -> Figure:
    """Several figures of a run in one, two a row."""
    from matplotlib import pyplot as plt

    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    figure = plt.figure(figsize=(7 * columns, 4.2 * rows), layout="constrained")
    cells = figure.subfigures(rows, columns, squeeze=False).flat
    for cell, (study, result) in zip(cells, results.items(), strict=False):
        studies[study].draw(cell, result)
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


def check_fraction(name: str, value: float | tuple[float, ...]) -> None:
    """ValueError where the number, or one of several, is no fraction."""
    for fraction in value if isinstance(value, tuple) else (value,):
        if not 0 < fraction <= 1:
            raise ValueError(f"{name} is a fraction of the examples, in (0, 1], not {fraction:g}")


def check_lengths(lengths: Sequence[int]) -> None:
    """Raises ValueError unless prompt lengths are positive and each is above the one before."""
    if any(end <= begin for begin, end in itertools.pairwise([0, *lengths])):
        raise ValueError(f"lengths must be positive and increase, unlike {list(lengths)}")


def band(values: ArrayLike, axis: int = 0) -> Result:
    """Mean and 95 % Student interval over ``axis`` (seeds), their number and values: {"mean", "low", "high", "seeds",
    "samples"}; samples have the seeds first."""
    samples = np.moveaxis(np.asarray(values, float), axis, 0)
    return intervals.band(samples) | {"seeds": len(samples), "samples": samples.tolist()}


def linear_fit(x: ArrayLike, y: ArrayLike) -> Result:
    """The slope of y against x: each row of y [seeds, len(x)] is fitted, then `band` over seeds.

    Points that are not finite are ignored, and so are seeds with fewer than three usable points.
    """
    slopes = []
    for row in np.atleast_2d(np.asarray(y, dtype=float)):
        usable = np.isfinite(row)
        if usable.sum() >= 3:
            slopes.append(np.polyfit(np.asarray(x, float)[usable], row[usable], 1)[0])
    return band(slopes) if slopes else {"mean": None, "low": None, "high": None, "seeds": 0, "samples": []}


def loglog(x: ArrayLike, y: ArrayLike) -> Result:
    """`linear_fit` of log y against log x. Points that are not positive are ignored too."""
    positive = np.where(np.asarray(y, dtype=float) > 0, y, np.nan)
    return linear_fit(np.log(np.asarray(x, float)), np.log(positive))


def first_below(x: Sequence[float], errors: ArrayLike, level: float) -> float:
    """The x at which errors [len(x)] first reach ``level``, by log-log interpolation.

    NaN if they never do, or if they are there at x[0], below which no error is known.
    """
    curve = np.asarray(errors, dtype=float)
    below = np.flatnonzero(curve <= level)
    if not len(below) or below[0] == 0:
        return float("nan")
    i = below[0]
    y = np.log(np.maximum(curve[i - 1 : i + 1], 1e-4))
    part = (y[0] - np.log(level)) / (y[0] - y[1])
    return float(np.exp(np.log(x[i - 1]) + part * np.log(x[i] / x[i - 1])))


def required_fit(values: ArrayLike, needed: ArrayLike, expected: float, quantity: str) -> Result:
    """``needed`` [seeds, values] of ``quantity`` against ``values``: band and slope, beside the theorem's exponent.

    ``at_limit`` [values]: how many seeds have no number there (NaN), because it is beyond what was tried.
    """
    fit = {"needed": band(needed), "slope": loglog(values, needed), "at_limit": np.isnan(needed).sum(axis=0)}
    return {"values": values, "quantity": quantity, "expected": expected} | fit


def draw_required(figure: FigureBase, result: Result, symbols: Mapping[str, str], threshold: str = "error") -> None:
    """Draw {"error", "fits": {name: `required_fit`}}, one panel per fit."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    panels = figure.subplots(1, len(result["fits"]), squeeze=False)[0]
    for axes, (name, fit) in zip(panels, result["fits"].items(), strict=True):
        mean = np.array(fit["needed"]["mean"], dtype=float)
        values, expected = np.array(fit["values"]), fit["expected"]
        axes.loglog(values, mean, "o-")
        if np.isfinite(mean).any():
            axes.loglog(values, np.nanmin(mean) * (values / values[np.nanargmin(mean)]) ** expected, "k:")
        axes.set(xlabel=symbols[name], ylabel=f"{fit['quantity']} to {threshold} {result['error']:g}")
        axes.set_xticks(values, [f"{value:.2g}" for value in values], fontsize=8)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        at_limit = sum(fit.get("at_limit", ()))  # results of earlier versions do not tell it
        without = f"\n{at_limit} beyond what was tried" if at_limit else ""
        title = f"{slope_text(fit['slope'])}\ndotted: {expected:g}{without}"
        axes.set_title(title.replace(": -", ": −"), fontsize=9)


def draw_band(axes: Axes, x: list[float], curve: Result, label: str, colour: str) -> None:
    """Draw a mean as a line and its interval as a band; nothing where they are None (result.json's NaN)."""
    floor = 1e-5 if axes.get_yscale() == "log" else -np.inf
    low, mean, high = (np.maximum(np.array(curve[k], dtype=float), floor) for k in ("low", "mean", "high"))
    axes.plot(x, mean, color=colour, label=label, lw=1.5)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)


def curve_of(name: str, x: list[float], curve: Result) -> Curve:
    """A mean and its interval as a curve of a page's panel."""
    return {"name": name, "x": x, "y": curve["mean"], "low": curve["low"], "high": curve["high"]}


def slope_text(slope: Result, digits: int = 2) -> str:
    if slope["mean"] is None:
        return "no slope"
    return f"slope {slope['mean']:.{digits}f} [{slope['low']:.{digits}f}, {slope['high']:.{digits}f}]"


def draw_speed(figure: FigureBase, result: Result) -> None:
    """Draw {"milliseconds", "ratio"}, each by way of training (`theory.training.training_speed`)."""
    axes = figure.subplots()
    times = result["milliseconds"]
    axes.barh([SPEED_LABELS[name] for name in times], list(times.values()))
    for i, (name, milliseconds) in enumerate(times.items()):
        axes.text(milliseconds, i, f" ×{result['ratio'][name]:.1f}", va="center")
    axes.set(xlabel="ms a run and SGD step")
