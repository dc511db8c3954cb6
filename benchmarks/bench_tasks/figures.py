"""Figures of the documents from results of ``bench.tasks``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.measure import intervals
from benchmarks.bench_tasks.tables import mean_of
from iro_server import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
MARKS = "osD^v<>Ph*Xd"


def frontier(content: JsonObject, path: Path) -> None:
    """Held-out reward with its interval against base tokens an answer, one panel a task; filled marks are of methods
    that call the grader while they decode."""
    draw_panels(points(content, "base_tokens"), path, "base tokens of an answer", log=True)


def by_seconds(content: JsonObject, path: Path) -> None:
    """The same against the seconds an answer, of prompts that are decoded side by side; of rows that were timed."""
    timed = [row for row in content["rows"] if row["seconds"] is not None]
    rows = [row | {"answer_seconds": row["seconds"] / len(row["rewards"])} for row in timed]
    draw_panels(points(content | {"rows": rows}, "answer_seconds"), path, "seconds of an answer", log=True)


def drift(content: JsonObject, path: Path) -> None:
    """The same against the nats that an answer of one row is from the frozen model, of tilts at other strengths too."""
    measured = points(content, "kl")
    frozen = [point | {"cost": 0.0} for point in measured if point["method"] == "base"]
    scaled = scaled_points(content)
    names = dict.fromkeys((point["task"], point["method"]) for point in scaled)
    starts = [point | {"method": method} for task, method in names for point in frozen if point["task"] == task]
    draw_panels([*measured, *starts, *scaled], path, "KL from the frozen model (nats an answer)", log=False)


def points(content: JsonObject, cost: str) -> list[JsonObject]:
    """``task``, ``method``, ``reward`` with its interval, ``cost`` and ``reward_calls`` of each method and number of
    rows of which the cost is known."""
    known = []
    for cell in content["intervals"]:
        name = (cell["task"], cell["method"], cell["rows"])
        rows = [row for row in content["rows"] if (row["task"], row["method"], row["rows"]) == name]
        if (mean := mean_of(rows, cost)) is not None:
            known.append(cell | {"cost": mean, "reward_calls": mean_of(rows, "reward_calls")})
    return known


def scaled_points(content: JsonObject) -> list[JsonObject]:
    """Likewise, by nats, of the methods whose tilt was measured at other strengths."""
    tilts = [row for row in content["tilts"] if row["tilted"] and row["strength"]]
    by_strength = [[row for row in tilts if row["strength"] == each] for each in {row["strength"] for row in tilts}]
    return [point for rows in by_strength for point in points({"rows": rows, "intervals": intervals(rows)}, "kl")]


def draw_panels(cells: Sequence[JsonObject], path: Path, label: str, log: bool) -> None:
    """One panel a task, one line a method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks, methods = (list(dict.fromkeys(cell[name] for cell in cells)) for name in ("task", "method"))
    columns = min(COLUMNS, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(4.2 * columns, 3.6 * lines + 0.8), squeeze=False)
    for task, axes in zip(tasks, panels.flat, strict=False):
        for number, method in enumerate(methods):
            of_method = [cell for cell in cells if (cell["task"], cell["method"]) == (task, method)]
            if of_method:
                mark = {"fmt": f"{MARKS[number % len(MARKS)]}-", "color": f"C{number % 10}", "label": method}
                draw_method(axes, of_method, mark)
        if log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:.3g}")
        axes.set_title(task)
        axes.set_xlabel(label)
        axes.set_ylabel("held-out reward")
    for axes in panels.flat[len(tasks) :]:
        axes.set_visible(False)
    handles = {
        label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=min(7, len(handles)), frameon=False)
    figure.tight_layout(rect=(0, 0.1 / lines, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_method(axes: Axes, cells: Sequence[JsonObject], mark: JsonObject) -> None:
    cells = sorted(cells, key=lambda cell: cell["cost"])
    rewards = [cell["reward"] for cell in cells]
    spread = [
        [reward["mean"] - reward["low"] for reward in rewards],
        [reward["high"] - reward["mean"] for reward in rewards],
    ]
    axes.errorbar(
        [cell["cost"] for cell in cells],
        [reward["mean"] for reward in rewards],
        yerr=spread,
        mfc=None if any(cell["reward_calls"] for cell in cells) else "white",
        lw=1,
        capsize=2,
        **mark,
    )
