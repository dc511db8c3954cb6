"""Figures of the documents from results of ``bench.tasks``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.tables import mean_of
from iro_server import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4
MARKS = "osD^v<>Ph*Xd"


def frontier(content: JsonObject, path: Path) -> None:
    """Held-out reward with its interval against base tokens an answer, one panel a task; filled marks are of methods
    that call the grader while they decode."""
    draw_panels(content, path, "base_tokens", "base tokens of an answer", log=True)


def drift(content: JsonObject, path: Path) -> None:
    """The same against the nats that an answer of one row is from the frozen model."""
    draw_panels(content, path, "kl", "KL from the frozen model (nats an answer)", log=False)


def draw_panels(content: JsonObject, path: Path, cost: str, label: str, log: bool) -> None:
    """Methods of which the rows have the ``cost``, by task."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = [cell for cell in content["intervals"] if mean_cost(content, cell, cost) is not None]
    tasks, methods = (list(dict.fromkeys(cell[name] for cell in cells)) for name in ("task", "method"))
    columns = min(COLUMNS, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(4.2 * columns, 3.6 * lines + 0.8), squeeze=False)
    for task, axes in zip(tasks, panels.flat, strict=False):
        for number, method in enumerate(methods):
            of_method = [cell for cell in cells if (cell["task"], cell["method"]) == (task, method)]
            if of_method:
                mark = {"fmt": f"{MARKS[number % len(MARKS)]}-", "color": f"C{number % 10}", "label": method}
                draw_method(axes, content, of_method, cost, mark)
        if log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
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


def draw_method(axes: Axes, content: JsonObject, cells: Sequence[JsonObject], cost: str, mark: JsonObject) -> None:
    points = [(mean_cost(content, cell, cost) or 0.0, mean_cost(content, cell, "reward_calls")) for cell in cells]
    order = sorted(range(len(cells)), key=lambda place: points[place][0])
    rewards = [cells[place]["reward"] for place in order]
    spread = [
        [reward["mean"] - reward["low"] for reward in rewards],
        [reward["high"] - reward["mean"] for reward in rewards],
    ]
    axes.errorbar(
        [points[place][0] for place in order],
        [reward["mean"] for reward in rewards],
        yerr=spread,
        mfc=None if any(calls for _, calls in points) else "white",
        lw=1,
        capsize=2,
        **mark,
    )


def mean_cost(content: JsonObject, cell: JsonObject, cost: str) -> float | None:
    """Of an answer, over seeds; None where it is unknown."""
    name = (cell["task"], cell["method"], cell["rows"])
    rows = [row for row in content["rows"] if (row["task"], row["method"], row["rows"]) == name]
    return mean_of(rows, cost)
