"""The table of README.md, as Markdown."""

from __future__ import annotations

from benchmarks.tables import table
from iro_server import JsonObject


def base(content: JsonObject) -> str:
    """Rewards of the frozen model by task."""
    config = content["run"]["config"]
    head = [
        "task",
        f"mean of {config['prompts']} x {config['rollouts']}",
        f"best of {config['rollouts']}",
        "judge",
        "finished",
        "tokens",
    ]
    rows = [
        [
            name,
            *[f"{row[field]:.2f}" for field in ("base", "best_of_n", "judge", "finished")],
            f"{row['completion_tokens']:.0f}",
        ]
        for name, row in content["tasks"].items()
    ]
    return table(head, [[*row] for row in rows])
