"""Whether the aligned model is above its rivals, in words: a table of the documents from results of ``bench.tasks``."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from benchmarks.bench_tasks.tables import mean_of
from benchmarks.tables import table
from iro_server import JsonObject

FROZEN, STATIC = ("base", "best_of_n", "tempered"), ("static_bias", "static_bias_refitted")


def verdicts(content: JsonObject) -> str:
    """Of each task and number of rows: a verdict against the strongest rival of each kind, and its base tokens
    beside those of best-of-n with the most rows."""
    *fewer, most = sorted({row["rows"] for row in content["rows"] if row["method"] == "iro"})
    head = ["task", "rows", "frozen model, as many rows", "static bias, as many rows", f"frozen model, {most} rows"]
    lines = []
    for task in dict.fromkeys(row["task"] for row in content["rows"]):
        for rows in fewer:
            gains = [cell for cell in content["comparisons"] if key_of(cell) == (task, "iro", rows)]
            judged = [verdict(gains, FROZEN, rows), verdict(gains, STATIC, rows), verdict(gains, FROZEN, most)]
            tokens = [base_tokens(content, key) for key in ((task, "iro", rows), (task, "best_of_n", most))]
            lines.append([task, str(rows), *judged, "{:.0f}, {:.0f}".format(*tokens)])
    return table([*head, f"base tokens, and those of {most} rows"], lines)


def verdict(gains: Sequence[JsonObject], rivals: Collection[str], rows: int) -> str:
    """By the 95 % interval of the smallest gain over rivals of so many rows."""
    rewards = [gain["reward"] for gain in gains if gain["over"] in rivals and gain["over_rows"] == rows]
    return verdict_of(min(rewards, key=lambda reward: reward["mean"]))


def verdict_of(difference: dict[str, float]) -> str:
    """By its interval."""
    return "above" if difference["low"] > 0 else "below" if difference["high"] < 0 else "indistinguishable"


def key_of(row: JsonObject) -> tuple[str, str, int]:
    return row["task"], row["method"], row["rows"]


def base_tokens(content: JsonObject, key: tuple[str, str, int]) -> float:
    """Of an answer, the mean over seeds."""
    mean = mean_of([row for row in content["rows"] if key_of(row) == key], "base_tokens")
    assert mean is not None
    return mean
