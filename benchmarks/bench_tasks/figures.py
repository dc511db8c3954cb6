"""Figures of the documents from results of ``bench.tasks``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.bench_tasks.tables import mean_of
from iro_server import JsonObject

COLUMNS = 4
MARKS = "osD^v<>Ph*Xd"


def frontier(content: JsonObject, path: Path) -> None:
    """Held-out reward with its interval against base tokens an answer, one panel a task; filled marks are of methods
    that call the grader while they decode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = content["intervals"]
    tasks, methods = (list(dict.fromkeys(cell[name] for cell in cells)) for name in ("task", "method"))
    columns = min(COLUMNS, len(tasks))
    lines = -(-len(tasks) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(4.2 * columns, 3.6 * lines + 0.8), squeeze=False)
    for task, axes in zip(tasks, panels.flat, strict=False):
        for number, method in enumerate(methods):
            points = sorted(
                (*costs(content, cell), cell["reward"])
                for cell in cells
                if (cell["task"], cell["method"]) == (task, method)
            )
            if not points:
                continue
            tokens, calls, rewards = zip(*points, strict=True)
            means = [reward["mean"] for reward in rewards]
            spread = [
                [reward["mean"] - reward["low"] for reward in rewards],
                [reward["high"] - reward["mean"] for reward in rewards],
            ]
            axes.errorbar(
                tokens,
                means,
                yerr=spread,
                fmt=f"{MARKS[number % len(MARKS)]}-",
                color=f"C{number % 10}",
                mfc=None if any(calls) else "white",
                lw=1,
                capsize=2,
                label=method,
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(task)
        axes.set_xlabel("base tokens of an answer")
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


def costs(content: JsonObject, cell: JsonObject) -> tuple[float, float]:
    """Base tokens and reward calls of an answer, means over seeds."""
    name = (cell["task"], cell["method"], cell["rows"])
    rows = [row for row in content["rows"] if (row["task"], row["method"], row["rows"]) == name]
    return mean_of(rows, "base_tokens") or 0.0, mean_of(rows, "reward_calls") or 0.0
