"""Whether an estimate says before a job what the job gains: ``python -m benchmarks.estimates``.

Twelve cases: the tasks of ``benchmarks/tasks``, and four planted failures of graders. A server estimates each job, on
as many prompts as it takes for the estimate beside a job; then the job runs, or is read from a finished piece of
``iro run bench.tasks`` (``--pieces FOLDER``). What is done is kept under ``--out``: an interrupted run goes on. The
results file is written once all cases are in.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.bench_tasks.config import ALL_TASKS
from benchmarks.estimated_jobs import PLANTED, Case, EngineLoader, piece_case, realised, sized_case
from benchmarks.faults_server import Server, wait_for
from benchmarks.record import command_line, computed_once, finish
from benchmarks.tables import table
from iro_server import JsonObject

CASES = (*ALL_TASKS, *PLANTED)
STARTING = 900.0  # seconds for the server to load its model, on a machine that does other work
LEARNING = ("go", "more_rollouts")  # verdicts under which a job may learn something
AIMS = {"spearman": ">= 0.8", "go_without_a_gain": "none", "share": "<= 5 %"}
JOB_OPTIONS = (
    *("iterations", "rollouts_per_prompt", "validation_prompts", "beam_width", "num_successors"),
    *("chunk_length", "max_tokens", "counted_tokens", "temperature"),
)
SIZES = (  # options of the command line that decide what comes of a case
    *("prompts", "rollouts", "seconds", "train_prompts", "validation_prompts", "job_rollouts", "max_tokens"),
)


def main() -> None:
    parser = command_line("estimates", __doc__)
    parser.add_argument("--pieces", type=Path, help="a folder of iro run bench.tasks, finished or running")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--prompts", type=int, help="prompts of an estimate; as of one beside a job if left out")
    parser.add_argument("--rollouts", type=int, default=8, help="completions of each")
    parser.add_argument("--seconds", type=float, default=120.0, help="that an estimate samples and grades, about")
    parser.add_argument("--train-prompts", type=int, default=64, help="of a job that is not a piece")
    parser.add_argument("--validation-prompts", type=int, default=12)
    parser.add_argument("--job-rollouts", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer, where the task does not set less")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with ExitStack() as stack:
        engine = EngineLoader(stack)
        rows = [row for name in args.cases if (row := row_of(name, engine, args)) is not None]
    numbers = {"rows": rows, "summary": summary(rows)} if rows else {}
    if missing := set(CASES) - {row["case"] for row in rows}:
        print(f"{len(rows)} of {len(CASES)} cases are in, so no results file is written.")
        print(f"Missing: {', '.join(name for name in CASES if name in missing)}")
        if rows:
            report(numbers)
        return
    finish(args, numbers, report, seeds=[args.seed])


def row_of(name: str, engine: EngineLoader, args: argparse.Namespace) -> JsonObject | None:
    """What was predicted and what came of it; None where the job's piece is not finished."""
    path = args.out / f"{name}-{args.seed}" / "row.json"
    is_piece = args.pieces is not None and name not in PLANTED
    piece = piece_case(args.pieces, name, args.seed) if is_piece else None
    if is_piece and piece is None and not path.exists():
        return None

    def compute() -> JsonObject:
        case = piece or sized_case(path.parent, name, args)
        estimate = estimated_once(case, path.parent, args)
        kind = "planted" if name in PLANTED else "task"
        return {"case": name, "kind": kind, "of_a_piece": is_piece} | predicted(estimate) | realised(case, engine)

    options = {option: getattr(args, option) for option in SIZES}
    options["pieces"] = str(args.pieces.resolve()) if is_piece else None
    content: JsonObject = computed_once(path, compute, options)
    return content


def estimated_once(case: Case, folder: Path, args: argparse.Namespace) -> JsonObject:
    """The estimate's result, by a server of its own."""
    from iro_server.jobs.estimates.cost import Rows
    from iro_server.jobs.estimates.running import affordable_prompts, num_rows, options_of
    from iro_server.settings import Settings

    path = folder / "estimate.json"
    if path.exists():
        stored: JsonObject = json.loads(path.read_text())
        return stored
    training, validation = (num_rows(path.open("rb")) for path in (case.training_file, case.validation_file))
    most = args.prompts or affordable_prompts(options_of(case.config), Rows(training, validation), args.rollouts)
    settings = Settings(
        data_dir=folder / "server",
        python_graders="unsafe",  # they are this benchmark's own
        estimate_prompts=max(3, min(most, training)),
        estimate_rollouts=args.rollouts,
        estimate_seconds=args.seconds,
    )
    server = Server(settings, folder / "server.log")
    server.start()
    try:
        wait_for(server.answers, "a server to answer", STARTING)
        record = ask(server, settings.model_name, case, args.seconds)
    finally:
        server.stop()
    path.write_text(json.dumps(record))
    return record


def ask(server: Server, model: str, case: Case, seconds: float) -> JsonObject:
    client = server.client
    files = {
        field: client.files.create(file=path, purpose="fine-tune").id
        for field, path in (("training_file", case.training_file), ("validation_file", case.validation_file))
    }
    options = {name: case.config[name] for name in JOB_OPTIONS if name in case.config}
    method = {"type": "reinforcement", "reinforcement": {"grader": case.config["grader"], "iro": options}}
    body = {"model": model, "method": method, "seed": case.config["seed"]} | files
    created: Any = client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object)

    def ended() -> Any:
        record: Any = client.get(f"/fine_tuning/jobs/estimate/{created['id']}", cast_to=object)
        return record if record["status"] in ("completed", "failed", "canceled") else None

    record = wait_for(ended, f"the estimate of {case.name}", STARTING + 2 * seconds)
    if record["status"] != "completed":
        raise RuntimeError(f"the estimate of {case.name} has {record['status']}: {record['error']}")
    result: JsonObject = record["result"]
    return result


def predicted(estimate: JsonObject) -> JsonObject:
    """``expected``: the gain by the estimate; ``predicted``: the same, and 0 where the verdict is that a job would
    learn nothing."""
    names = ("verdict", "message", "prompts", "completions", "cost", "estimate_cost")
    expected = estimate["expected_gain"]
    mean = expected["mean"] if expected and estimate["verdict"] in LEARNING else 0.0
    return {name: estimate[name] for name in names} | {"expected": expected, "predicted": mean}


def summary(rows: Sequence[JsonObject]) -> JsonObject:
    """Predictions against gains over all cases, and what the estimates cost."""
    gains = [row["gain"] for row in rows]
    expected = [row["expected"]["mean"] if row["expected"] else 0.0 for row in rows]
    costs = [(row["estimate_cost"], row["spent"]) for row in rows if row["failed"] is None]
    return {
        "cases": len(rows),
        "aims": AIMS,
        "spearman": spearman([row["predicted"] for row in rows], gains),
        "spearman_without_verdicts": spearman(expected, gains),
        "go": [row["case"] for row in rows if row["verdict"] == "go"],
        "go_without_a_gain": [row["case"] for row in rows if row["verdict"] == "go" and not row["is_shown"]],
        "gain_without_go": [row["case"] for row in rows if row["verdict"] != "go" and row["is_shown"]],
        "share": {
            name: sum(estimate[name] for estimate, _ in costs) / sum(spent[name] for _, spent in costs)
            for name in ("base_tokens", "seconds")
        }
        if costs
        else None,
    }


def spearman(predictions: Sequence[float], gains: Sequence[float]) -> JsonObject | None:
    """Rank correlation, ties by their mean rank, with a 95 % interval by Fisher's z and the standard error of Bonett
    and Wright (2000), sqrt((1 + r²/2) / (n - 3)). None for fewer than four, or where one side is constant."""
    if len(gains) < 4 or len(set(predictions)) == 1 or len(set(gains)) == 1:
        return None
    r = float(stats.spearmanr(predictions, gains).statistic)
    error = math.sqrt((1 + r * r / 2) / (len(gains) - 3))
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    low, high = np.tanh(z + np.array([-1.96, 1.96]) * error)
    return {"mean": r, "low": float(low), "high": float(high)}


def each_case(content: JsonObject) -> str:
    """Predicted and realised gain of each case, and what the job took against the estimate's figures."""
    head = ["case", "verdict", "predicted gain", "realised gain", "job's tokens", "seconds", "disk"]
    lines = [
        [
            row["case"],
            row["verdict"].replace("_", " "),
            _with_ends(row["expected"]),
            row["failed"] or f"{row['gain']:.3f} ± {1.96 * row['error']:.3f}",
            *(_against(row, name) for name in ("base_tokens", "seconds", "disk_bytes")),
        ]
        for row in content["rows"]
    ]
    return table(head, lines)


def _with_ends(interval: JsonObject | None) -> str:
    return "" if interval is None else f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


UNITS: dict[str, Callable[[float], str]] = {
    "base_tokens": lambda tokens: f"{tokens:,.0f}",
    "seconds": lambda seconds: f"{seconds:.0f}",
    "disk_bytes": lambda size: f"{size / 2**20:.0f} MiB",
}


def _against(row: JsonObject, name: str) -> str:
    """What the job took, of what was estimated."""
    spent = row["spent"].get(name)
    actual = "" if spent is None else UNITS[name](spent)
    return f"{actual} of {UNITS[name](row['cost'][name])}".strip()


def totals(content: JsonObject) -> str:
    """The aims, and what is reached."""
    numbers, aims = content["summary"], content["summary"]["aims"]
    share = numbers["share"] or {"base_tokens": math.nan, "seconds": math.nan}
    lines = [
        ["rank correlation of predicted and realised gain", _with_ends(numbers["spearman"]), aims["spearman"]],
        ["the same without the verdicts", _with_ends(numbers["spearman_without_verdicts"]), ""],
        [
            "`go` before a job that shows no gain",
            ", ".join(numbers["go_without_a_gain"]) or "none",
            aims["go_without_a_gain"],
        ],
        ["no `go` before a job that shows one", ", ".join(numbers["gain_without_go"]) or "none", ""],
        ["share of the jobs' base tokens", f"{share['base_tokens']:.1%}", aims["share"]],
        ["share of the jobs' seconds", f"{share['seconds']:.1%}", aims["share"]],
    ]
    return table([f"over {numbers['cases']} cases", "", "aim"], lines)


def report(numbers: JsonObject) -> None:
    print(each_case(numbers), totals(numbers), sep="\n")


if __name__ == "__main__":
    main()
