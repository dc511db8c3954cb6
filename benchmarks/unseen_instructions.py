"""Jobs of ``instructions`` on IFBench's prompts: ``python -m benchmarks.unseen_instructions --pieces FOLDER ...``.

The aligned models are those of finished pieces of ``iro run bench.tasks``, which trained on other kinds of instructions
about other topics. The reward is 1 where IFBench's checkers find all instructions of a prompt followed, else 0. Prompts
with an instruction of ``UNCHECKED`` are left out, and of the others ``--prompts`` are answered. Best-of-n picks by the
same checkers; the aligned model at several rows picks by its values, in the way that its job's validation prompts
preferred. A job that showed no gain serves the frozen model: measured is what it would have served. The benchmark goes
on where it was interrupted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.config import BenchTasksConfig
from benchmarks.bench_tasks.engine import open_engine
from benchmarks.bench_tasks.job import job_reports
from benchmarks.bench_tasks.measure import comparisons, intervals, measured
from benchmarks.bench_tasks.methods import METHODS
from benchmarks.bench_tasks.tables import mean_of
from benchmarks.record import command_line, computed_once, finish
from benchmarks.tables import interval_text, table
from benchmarks.tasks.instructions import (
    INSTRUCTIONS_TASK,
    checked_prompts,
    ifbench_grader,
    unseen_prompts,
    why_unchecked,
)
from benchmarks.tasks.task import cosine_to_prompt
from benchmarks.weightings import open_finished
from iro_server import JsonObject

if TYPE_CHECKING:
    from benchmarks.bench_tasks.piece import Piece
    from iro_server.graders.base import Grader

UNSEEN_TASK = replace(
    INSTRUCTIONS_TASK,
    name="unseen instructions",
    prompts=checked_prompts,
    grader=ifbench_grader,
    judge=cosine_to_prompt,
)
SETTINGS = (("base", 1), ("iro", 1), ("best_of_n", 4), ("iro", 4))


def on_unseen_prompts(piece: Piece, method: str, rows: int, prompts: int, grader: Grader) -> JsonObject:
    """A line of the results, without texts; each prompt is answered once. ``grader``: of ``UNSEEN_TASK``, open.

    The aligned model is the piece's; only best-of-n sees the grader.
    """
    options = piece.config.model_copy(update={"heldout_prompts": prompts, "measured_rows": 1})
    unseen = replace(piece, config=options, task=UNSEEN_TASK, grader=grader)
    row = measured(unseen, method, rows, METHODS[method].build(piece if method == "iro" else unseen))
    return {name: value for name, value in row.items() if name != "texts"}


def main() -> None:
    from iro_server.graders.parsing import parse_grader

    parser = command_line("unseen_instructions", __doc__)
    parser.add_argument("--pieces", type=Path, nargs="+", required=True, help="run folders of bench.tasks")
    parser.add_argument("--prompts", type=int, default=96, help="of those that can be checked, evenly spaced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4], help="of the pieces")
    args = parser.parse_args()
    saved = json.loads((args.pieces[0] / "config.json").read_text())["config"]
    rows, jobs = [], []
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(BenchTasksConfig.model_validate(saved)))
        grader = stack.enter_context(parse_grader(UNSEEN_TASK.grader()))
        for seed in args.seeds:
            piece = open_finished(args.pieces, INSTRUCTIONS_TASK.name, seed, engine, stack)
            jobs += job_reports(piece.folder.parents[1], INSTRUCTIONS_TASK.name, seed)
            for method, count in SETTINGS:
                path = args.out / f"{method}-{count}-{seed}-of-{args.prompts}.json"
                rows.append(computed_once(path, partial(on_unseen_prompts, piece, method, count, args.prompts, grader)))
    del args.pieces
    finish(args, summary(rows, jobs), report, seeds=args.seeds)


def summary(rows: Sequence[JsonObject], jobs: Sequence[JsonObject]) -> JsonObject:
    """``unchecked``: how many of IFBench's prompts cannot be checked, by reason. ``jobs``: what each says of itself."""
    reasons = Counter(reason for reason in map(why_unchecked, unseen_prompts()) if reason)
    counts = {"prompts": len(rows[0]["rewards"]), "unchecked": dict(reasons)}
    return counts | {"jobs": jobs, "intervals": intervals(rows), "comparisons": comparisons(rows), "rows": rows}


def unseen(content: JsonObject) -> str:
    """Share of prompts whose instructions are all followed, at each seed too, and its paired difference from the frozen
    model; tokens, and the share of answers that end."""
    over_base = [cell for cell in content["comparisons"] if cell["over"] == "base"]
    gains = {(cell["method"], cell["rows"]): cell["reward"] for cell in over_base}
    lines = []
    for cell in content["intervals"]:
        name = (cell["method"], cell["rows"])
        of_seeds = [row for row in content["rows"] if (row["method"], row["rows"]) == name]
        lines.append(
            [
                *map(str, name),
                interval_text(cell["reward"]),
                "; ".join(f"{row['reward']:.2f}" for row in of_seeds),
                interval_text(gains[name], "+") if name in gains else "",
                f"{cell['judge']['mean']:.2f}",
                *(f"{mean_of(of_seeds, field):.{digits}f}" for field, digits in (("finished", 2), ("length", 0))),
                f"{mean_of(of_seeds, 'base_tokens'):.0f}",
            ]
        )
    head = ["method", "rows", "all followed", "at each seed", "less the frozen model", "judge", "finished", "tokens"]
    return table([*head, "base tokens"], lines)


def report(numbers: JsonObject) -> None:
    print(unseen(numbers))


if __name__ == "__main__":
    main()
