"""What the figures show: which points are a line, and which marks are filled."""

from __future__ import annotations

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from benchmarks.bench_tasks.figures import draw_method, points_by_nats
from iro_server import JsonObject


def line(method: str, seed: int, reward: float, kl: float | None, **fields: object) -> JsonObject:
    measured = {"rewards": [reward, reward], "judges": [0.5, 0.5], "kl": kl, "reward_calls": 0.0}
    return {"task": "t", "method": method, "rows": 1, "seed": seed} | measured | fields


def test_a_line_by_nats_is_of_the_seeds_that_were_measured_at_other_strengths() -> None:
    rows = [
        line("base", 0, 1.0, 0.0),
        line("base", 1, 3.0, 0.0),
        line("iro", 0, 5.0, 20.0),
        line("iro", 1, 9.0, 60.0),
        line("iro", 0, 9.5, None, rows=4),
        line("dpo", 1, 4.0, 2.0),
    ]
    tilts = [
        line("iro", 0, 3.0, 10.0, strength=0.5, tilted=True),
        line("iro", 0, 1.0, 0.0, strength=0.0, tilted=True),  # the frozen model
        line("dpo", 0, 1.0, 0.0, strength=0.5, tilted=False),
    ]
    points: dict[str, list[tuple[float, float]]] = {}
    for point in points_by_nats({"rows": rows, "tilts": tilts}):
        points.setdefault(point["method"], []).append((point["cost"], point["reward"]["mean"]))
    assert sorted(points.pop("iro")) == [(0.0, 1.0), (10.0, 3.0), (20.0, 5.0)]
    assert points == {"base": [(0.0, 2.0)], "dpo": [(2.0, 4.0)]}  # of all seeds, as there is no line


@pytest.fixture
def axes() -> Axes:
    matplotlib.use("Agg")
    return Figure().subplots()


def test_marks_are_filled_where_the_grader_was_called(axes: Axes) -> None:
    reward = {"mean": 0.5, "low": 0.25, "high": 0.75}
    cells = [{"cost": cost, "reward": reward, "reward_calls": calls} for cost, calls in ((1.0, 0.0), (4.0, 3.9))]
    draw_method(axes, cells, {"fmt": "o", "color": "C0", "label": "tempered"})
    faces = {tuple(marks.get_xdata()): marks.get_markerfacecolor() for marks in axes.lines if marks.get_marker() == "o"}
    assert to_rgba(faces[(1.0,)]) == to_rgba("white") and to_rgba(faces[(4.0,)]) == to_rgba("C0")
    (connection,) = (drawn for drawn in axes.lines if drawn.get_linestyle() == "-")
    assert list(connection.get_xdata()) == [1.0, 4.0]
