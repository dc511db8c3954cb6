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
IN_LINE, LEGEND_LINE = 7, 0.2  # entries of the legend, and the height of a line of them in inches
MARKS = "osD^v<>Ph*Xd"


def frontier(content: JsonObject, path: Path) -> None:
    """Held-out reward with its interval against base tokens an answer, one panel a task; filled marks are of answers
    for which the grader was called."""
    draw_panels(points(content, "base_tokens"), path, "base tokens of an answer", log=True)


def by_seconds(content: JsonObject, path: Path) -> None:
    """The same against the seconds an answer, of prompts that are decoded side by side; of rows that were timed."""
    timed = [row for row in content["rows"] if row["seconds"] is not None]
    rows = [row | {"answer_seconds": row["seconds"] / len(row["rewards"])} for row in timed]
    draw_panels(points(content | {"rows": rows}, "answer_seconds"), path, "seconds of an answer", log=True)


def drift(content: JsonObject, path: Path) -> None:
    """The same against the nats that an answer of one row is from the frozen model, of tilts at other strengths too."""
    draw_panels(points_by_nats(content), path, "KL from the frozen model (nats an answer)", log=False)


def points_by_nats(content: JsonObject) -> list[JsonObject]:
    """``points`` by nats; of a method whose tilt was measured at other strengths also those and the frozen model, all
    of the seeds that were measured so: they are a line of the same jobs."""
    tilts = [row for row in content["tilts"] if row["tilted"] and row["strength"]]
    seeds: dict[tuple[str, str], set[int]] = {}
    for row in tilts:
        seeds.setdefault((row["task"], row["method"]), set()).add(row["seed"])
    rows = [row for row in content["rows"] if row["kl"] is not None]
    at_full_strength = [row for row in rows if row["seed"] in seeds.get((row["task"], row["method"]), {row["seed"]})]
    starts = [
        row | {"method": method}
        for task, method in seeds
        for row in rows
        if (row["task"], row["method"]) == (task, "base") and row["seed"] in seeds[task, method]
    ]
    scaled = [[row for row in tilts if row["strength"] == each] for each in {row["strength"] for row in tilts}]
    by_point = [at_full_strength, starts, *scaled]
    return [point for rows in by_point for point in points({"rows": rows, "intervals": intervals(rows)}, "kl")]


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
                mark = {"fmt": MARKS[number % len(MARKS)], "color": f"C{number % 10}", "label": method}
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
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=IN_LINE, frameon=False)
    legend_lines = -(-len(handles) // IN_LINE)
    figure.tight_layout(rect=(0, (0.1 + LEGEND_LINE * legend_lines) / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_method(axes: Axes, cells: Sequence[JsonObject], mark: JsonObject) -> None:
    """A line of the cells by cost, with their intervals; filled marks where a cell has ``reward_calls``."""
    cells = sorted(cells, key=lambda cell: cell["cost"])
    axes.plot(*positions(cells), lw=1, color=mark["color"])
    graded, ungraded = ([cell for cell in cells if bool(cell["reward_calls"]) == calls] for calls in (True, False))
    for marked, face in ((ungraded, "white"), (graded, mark["color"])):
        rewards = [cell["reward"] for cell in marked]
        spread = [
            [reward["mean"] - reward["low"] for reward in rewards],
            [reward["high"] - reward["mean"] for reward in rewards],
        ]
        if marked:
            axes.errorbar(*positions(marked), yerr=spread, mfc=face, lw=1, capsize=2, **mark)


def positions(cells: Sequence[JsonObject]) -> tuple[list[float], list[float]]:
    return [cell["cost"] for cell in cells], [cell["reward"]["mean"] for cell in cells]
