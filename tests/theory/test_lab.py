"""Runs made of studies: intervals, fits, and that only what was asked for is computed, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread
from pydantic import ValidationError

from theory.lab import (
    GALLERY_DPI,
    LabConfig,
    Study,
    band,
    draw_band,
    draw_required,
    first_below,
    lab,
    loglog,
    required_fit,
)
from theory.page import Panel
from training.run import Cancelled


def test_a_band_is_students_interval() -> None:
    interval = band([[1.0, 5.0], [3.0, 5.0]])  # t(.975, 1) = 12.706, standard error 1
    assert interval["mean"] == [2.0, 5.0] and interval["seeds"] == 2
    assert interval["high"] == pytest.approx([14.706, 5.0], abs=1e-3)


def test_a_band_has_the_samples_of_each_seed() -> None:
    assert band([[1.0, 5.0], [3.0, 5.0]])["samples"] == [[1.0, 5.0], [3.0, 5.0]]
    assert band([[1.0, 5.0], [3.0, 5.0]], axis=1)["samples"] == [[1.0, 3.0], [5.0, 5.0]]


@given(st.floats(-3, 3), st.floats(0.1, 10))
def test_a_loglog_fit_recovers_a_power(exponent: float, factor: float) -> None:
    x = np.array([0.2, 0.5, 1.0, 2.0])
    fit = loglog(x, [factor * x**exponent, 2 * factor * x**exponent])
    assert fit["mean"] == pytest.approx(exponent, abs=1e-9)


def test_a_loglog_fit_leaves_out_what_was_never_reached() -> None:
    x = np.array([1.0, 2.0, 4.0, 8.0])
    fit = loglog(x, [[np.nan, 4.0, 16.0, 64.0], [np.nan, np.nan, 1.0, 2.0]])
    assert fit["seeds"] == 1 and fit["mean"] == pytest.approx(2)


@given(st.floats(0.5, 3), st.floats(0.02, 0.4))
def test_where_a_power_comes_down_to_a_level_is_found_between_points(exponent: float, level: float) -> None:
    x = [1.0, 2.0, 4.0, 8.0, 64.0, 4096.0]
    crossing = first_below(x, [each**-exponent for each in x], level)
    assert crossing == pytest.approx(level ** (-1 / exponent), rel=1e-6)


def test_a_level_met_at_once_or_never_is_beyond_what_was_tried() -> None:
    at_once = first_below([3, 6], [0.01, 0.0], 0.02)
    never = first_below([3, 6], [0.5, 0.4], 0.02)
    assert np.isnan(at_once) and np.isnan(never)
    fit = required_fit([1, 2, 4], [[at_once, 5.0, 6.0], [never, 5.0, at_once]], -1, "context")
    assert fit["at_limit"].tolist() == [2, 0, 1] and fit["slope"]["mean"] is None


def test_what_no_model_reached_is_drawn_empty() -> None:
    nothing = {"mean": [None] * 3, "low": [None] * 3, "high": [None] * 3}
    no_slope = {"mean": None, "low": None, "high": None}
    fit = {"values": [1, 2, 4], "quantity": "steps", "expected": -1, "needed": nothing, "slope": no_slope}
    figure = Figure()
    draw_required(figure, {"error": 0.02, "fits": {"M": fit | {"at_limit": [2, 2, 2]}}}, {"M": "M"})
    assert "no slope" in figure.axes[0].get_title() and "6 beyond what was tried" in figure.axes[0].get_title()
    for scale in ("linear", "log"):
        axes = Figure().subplots()
        axes.set_yscale(scale)
        draw_band(axes, [1, 2, 4], nothing, "no model", "C0")
        assert np.isnan(axes.lines[0].get_ydata()).all()


def a_lab(computed: list[str]) -> Any:
    def compute(name: str) -> Any:
        def computed_study(config: Any, run: Any) -> dict[str, Any]:
            computed.append(name)
            return {"y": np.arange(3.0)}

        return computed_study

    def draw(figure: Any, result: Any) -> None:
        figure.subplots().plot(result["y"])

    def panels(result: Any) -> list[Panel]:
        return [Panel("p", "P", "x", "y", {}, {"": [{"name": "y", "x": [0, 1, 2], "y": result["y"]}]})]

    studies = {name: Study(compute(name), draw, None, panels) for name in ("first", "second")}
    return lab("theory.test", "", LabConfig, studies, {}, lambda config: 1, ("Title", "Intro"))


def test_a_study_is_computed_once_and_drawn_from_what_was_saved(tmp_path: Path) -> None:
    computed: list[str] = []
    job, stop_answers = a_lab(computed), iter([False, True])
    with pytest.raises(Cancelled):
        job.execute({}, tmp_path, should_stop=lambda: next(stop_answers))
    assert computed == ["first"]
    result = job.execute({}, tmp_path)
    assert computed == ["first", "second"] and result["studies"]["second"] == {"y": [0, 1, 2]}
    for path in (tmp_path / "figures").iterdir():
        path.unlink()
    job.execute({}, tmp_path)
    assert computed == ["first", "second"]
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"first.png", "second.png", "gallery.png", "page.html"}


def test_a_config_with_which_a_chosen_study_cannot_be_computed_is_refused_with_the_studys_name() -> None:
    def refuse(config: Any) -> None:
        raise ValueError("seed is not even")

    studies = {
        "fits": Study(lambda config, run: {}, lambda figure, result: None),
        "refuses": Study(lambda config, run: {}, lambda figure, result: None, requires=refuse),
    }
    job = lab("theory.test", "", LabConfig, studies, {}, lambda config: 1, ("Title", "Intro"))
    job.Config.model_validate({"studies": ["fits"]})
    with pytest.raises(ValidationError, match="study refuses: seed is not even; change it or leave the study out"):
        job.Config.model_validate({})


def test_one_figure_is_one_study(tmp_path: Path) -> None:
    computed: list[str] = []
    a_lab(computed).execute({"studies": ["second"]}, tmp_path)
    assert computed == ["second"]


def test_the_gallery_shows_the_named_studies_two_a_row(tmp_path: Path) -> None:
    def draw(figure: Any, result: Any) -> None:
        figure.subplots().plot(result["y"])

    studies = {name: Study(lambda config, run: {"y": np.arange(3.0)}, draw) for name in "abc"}
    shapes = {}
    for gallery in ((), ("a",), ("a", "c")):
        job = lab("theory.test", "", LabConfig, studies, {"all": {}}, lambda config: 0, ("", ""), gallery)
        folder = tmp_path / "".join(gallery)
        job.execute({}, folder / "run")
        height, width, _ = imread(folder / "run" / "figures" / "gallery.png").shape
        shapes["".join(gallery)] = (round(width / GALLERY_DPI), round(height / GALLERY_DPI, 1))
    assert shapes == {"": (14, 8.4), "a": (7, 4.2), "ac": (14, 4.2)}
