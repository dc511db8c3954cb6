"""Tables of the documents from results of ``bench.tasks``, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.tables import interval_text, table
from iro_server import JsonObject


def rewards(content: JsonObject) -> str:
    """Every method on every task: reward with its interval, the unseen judge, costs and the look of the text."""
    head = ["task", "method", "rows", "reward", "judge", "perplexity", "distinct-2", "KL (nats)", "base tokens"]
    lines = []
    for cell in content["intervals"]:
        name = (cell["task"], cell["method"], cell["rows"])
        of_seeds = [row for row in content["rows"] if (row["task"], row["method"], row["rows"]) == name]
        kl = mean_of(of_seeds, "kl")
        lines.append(
            [
                *map(str, name),
                interval_text(cell["reward"]),
                f"{cell['judge']['mean']:.2f}",
                f"{mean_of(of_seeds, 'perplexity'):.1f}",
                f"{mean_of(of_seeds, 'distinct_2'):.2f}",
                "" if kl is None else f"{kl:.1f}",
                f"{mean_of(of_seeds, 'base_tokens'):.0f}",
            ]
        )
    return table(head, lines)


SHORT = (
    ("base", min, "frozen model"),
    ("best_of_n", max, "best by the grader"),
    ("static_bias", min, "static bias"),
    ("iro_search", max, "Iro, search alone"),
    ("iro", min, "Iro"),
    ("iro", max, "Iro"),
)


def short(content: JsonObject) -> str:
    """Rewards of the main methods at the fewest or the most rows, a column a task."""
    cells = {(cell["task"], cell["method"], cell["rows"]): cell["reward"] for cell in content["intervals"]}
    tasks = list(dict.fromkeys(task for task, _, _ in cells))
    lines = []
    for method, pick, label in SHORT:
        rows = [pick(count for task, name, count in cells if (task, name) == (of, method)) for of in tasks]
        rewards = [interval_text(cells[task, method, count]) for task, count in zip(tasks, rows, strict=True)]
        lines.append([label, str(rows[0]), *rewards])
    return table(["method", "rows", *tasks], lines)


def gains(content: JsonObject) -> str:
    """Paired differences of the aligned model."""
    lines = [
        [
            cell["task"],
            str(cell["rows"]),
            f"{cell['over']} ({cell['over_rows']})",
            interval_text(cell["reward"], "+"),
            "< 0.001" if cell["p"] < 0.001 else f"{cell['p']:.3f}",
        ]
        for cell in content["comparisons"]
        if cell["method"] == "iro"
    ]
    return table(["task", "rows of the aligned model", "less (rows)", "reward", "p"], lines)


def mean_of(rows: Sequence[JsonObject], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return sum(values) / len(values) if values else None
