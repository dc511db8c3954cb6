"""The unseen judge against the reward: whether more rows, or a job's choice of them, over-optimise the grader."""

from __future__ import annotations

from benchmarks.bench_tasks.tables import mean_of
from benchmarks.tables import table
from iro_server import JsonObject

NEAR_BEST = 0.02
"""The share of the best judge's score that a job's choice may be below it."""


def judge_by_reward(content: JsonObject) -> str:
    """Judge and reward of the frozen model's one row and of the aligned model at each number of rows, means over seeds;
    of each task, at how many jobs the judge's score of what the job serves is within 2 % of the best of these. And of
    each job by how much it is below."""
    counts = sorted({row["rows"] for row in content["rows"] if row["method"] == "iro"})
    lines = []
    for task in dict.fromkeys(job["task"] for job in content["jobs"]):
        losses = [judge_loss(content, job) for job in content["jobs"] if job["task"] == task]
        near = sum(loss <= NEAR_BEST for loss in losses)
        settings = [("base", None), *(("iro", count) for count in counts)]
        cells = [judge_text(content, task, *setting) for setting in settings]
        by_job = ", ".join(f"{float(f'{100 * loss:.2g}'):g} %" if loss else "best" for loss in losses)
        lines.append([f"{task} ({near} of {len(losses)} jobs within 2 %)", *cells, by_job])
    head = ["task", "frozen model", *(f"rows: {count}" for count in counts)]
    return table([*head, "what each job serves, below the best judge's score by"], lines)


def judge_text(content: JsonObject, task: str, method: str, count: int | None) -> str:
    rows = [row for row in content["rows"] if (row["task"], row["method"]) == (task, method)]
    rows = [row for row in rows if count is None or row["rows"] == count]
    return f"{mean_of(rows, 'judge'):.2f} ({mean_of(rows, 'reward'):.2f})"


def judge_loss(content: JsonObject, job: JsonObject) -> float:
    """How far the judge's score of what the job serves is below the best of the frozen model and of the aligned model
    at each number of rows, as a share of that."""
    rows = [row for row in content["rows"] if (row["task"], row["seed"]) == (job["task"], job["seed"])]
    frozen = next(row["judge"] for row in rows if row["method"] == "base")
    aligned = {row["rows"]: row["judge"] for row in rows if row["method"] == "iro"}
    served = aligned[job["served_rows"]] if job["improved"] else frozen
    best = max(frozen, *aligned.values())
    return (best - served) / abs(best)
