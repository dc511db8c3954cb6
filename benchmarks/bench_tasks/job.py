"""``iro run bench.tasks``: rewards, an unseen judge and costs of every method on every task.

A piece is a task and a seed. Its alignment job and each of its methods is a step: an interrupted run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from benchmarks.bench_tasks.config import PRESETS, BenchTasksConfig
from iro_server import JsonObject
from iro_server.alignment.definition import DEFAULT_OPTIONS
from training.run import Job, Run

if TYPE_CHECKING:
    from benchmarks.bench_tasks.piece import Piece
    from iro_server.engines.embedded import EmbeddedEngine

METRICS = ("task", "method", "rows", "seed", "reward", "judge", "seconds")


def run(config: BenchTasksConfig, run: Run) -> JsonObject:
    """``rows`` of the results file, ``training`` of each piece and of its adapters, ``jobs``: what each alignment job
    says of itself, ``tuning`` of strengths and temperatures, ``tilts`` at other strengths, ``iterations`` of each job,
    ``intervals``, paired ``comparisons`` and ``iteration_gains``."""
    from benchmarks.bench_tasks.checks import check_prompts, check_rows
    from benchmarks.bench_tasks.engine import open_engine
    from benchmarks.bench_tasks.measure import comparisons, intervals, iteration_gains
    from benchmarks.bench_tasks.refitted_bias import strength_step
    from benchmarks.bench_tasks.yardsticks import RATES, YARDSTICKS, require_trl, training_step

    if set(config.methods) & set(YARDSTICKS):
        require_trl()
    check_rows(config)
    check_prompts(config)
    measured: dict[str, list[JsonObject]] = {"rows": [], "tilts": [], "iterations": []}
    training: list[JsonObject] = []
    jobs: list[JsonObject] = []
    tuning: list[JsonObject] = []
    with closing(open_engine(config)) as engine:
        for seed in range(config.seeds):
            for name in config.tasks:
                for part, lines in run_piece(config, name, config.seed + seed, run, engine).items():
                    measured[part] += lines
                trainings = [training_step(method, rate) for method in YARDSTICKS for rate in RATES]
                training += saved(run, name, config.seed + seed, ["training", *trainings])
                jobs += job_reports(run.folder, name, config.seed + seed)
                tuned = [*map(strength_step, range(1, DEFAULT_OPTIONS.tilt_rounds + 1))]
                tuned += [f"{method}-{what}" for method in config.methods for what in ("strength", "temperatures")]
                tuning += saved(run, name, config.seed + seed, tuned)
    return measured | {
        "training": training,
        "jobs": jobs,
        "tuning": tuning,
        "intervals": intervals(measured["rows"]),
        "comparisons": comparisons(measured["rows"]),
        "iteration_gains": iteration_gains(measured["iterations"]),
    }


def job_reports(folder: Path, name: str, seed: int) -> list[JsonObject]:
    """Of the job of a piece in a run's ``folder``, where its rewards were not all equal: the gain on prompts that chose
    nothing, half its 95 % interval, whether it is above 0, the correlation of values with rewards, and the way it is
    served if it is."""
    content = job_result(folder, name, seed)
    if content is None:
        return []
    check, iteration = content["checks"][0], content["history"][content["best_iteration"] - 1]
    gain, error = map(float, check["got"].split(" ± "))
    served = next(price for price in content["prices"] if price["search"].items() <= content["search"].items())
    return [
        {
            "task": name,
            "seed": seed,
            "gain": gain,
            "gain_error": error,
            "improved": check["holds"],
            "correlation": iteration["stack_correlation"],
            "served": served["name"],
            "served_rows": served["rows"],
        }
    ]


def job_result(folder: Path, name: str, seed: int) -> JsonObject | None:
    """Of a piece's job; None where its rewards were all equal."""
    path = folder / "pieces" / f"{name}-{seed}" / "align" / "result.json"
    if not path.exists():
        return None
    content: JsonObject = json.loads(path.read_text())
    return content


def saved(run: Run, name: str, seed: int, steps: Iterable[str]) -> list[JsonObject]:
    """The values of those steps of a piece that it has."""
    names = [f"{name}-{seed}-{step}" for step in steps]
    return [cast(JsonObject, run.load(step)) for step in names if run.has(step)]


def run_piece(
    config: BenchTasksConfig, name: str, seed: int, run: Run, engine: EmbeddedEngine
) -> dict[str, list[JsonObject]]:
    """Of a task at a seed: ``rows`` of each method, ``tilts`` at other strengths, ``iterations`` that the job kept."""
    from benchmarks.bench_tasks.methods import METHODS, SCALED
    from benchmarks.bench_tasks.piece import open_piece
    from benchmarks.tasks import TASKS
    from iro_server.graders.parsing import parse_grader

    with parse_grader(TASKS[name].grader()) as grader:
        piece = open_piece(config, name, seed, run, engine, grader)

        def step(step_name: str, compute: Callable[[], JsonObject], phase: str = "decoding") -> JsonObject:
            value: JsonObject = run.step(f"{name}-{seed}-{step_name}", compute, phase)
            return value

        step("training", partial(training_cost, piece), "training")
        rows = [
            step(
                f"{method}-{count}{repetition_suffix(config, count)}",
                partial(measure_method, piece, method, count, run),
            )
            for method in config.methods_for(name, seed - config.seed)
            for count in config.rows
            if METHODS[method].takes(count)
        ]
        tilts = [
            step(
                f"{method}-at-{strength:g}{repetition_suffix(config, 1)}",
                partial(measure_tilt, piece, method, strength),
            )
            for method in config.methods_for(name, seed - config.seed)
            if method in SCALED
            for strength in config.tilt_strengths
        ]
        job = job_result(run.folder, name, seed) if config.each_iteration else None
        iterations = [
            step(
                f"iteration-{row['step']}-{count}{repetition_suffix(config, count)}",
                partial(measure_iteration, piece, job, row, count),
            )
            for row in (job["history"] if job else [])
            if job and row["path"]
            for count in config.rows
        ]
    return {"rows": rows, "tilts": tilts, "iterations": iterations}


def repetition_suffix(config: BenchTasksConfig, rows: int) -> str:
    """The end of a step's name: "-8-times" where it answers each prompt eight times."""
    from benchmarks.bench_tasks.measure import num_answers

    count = num_answers(config, rows)
    return "" if count == 1 else f"-{count}-times"


def training_cost(piece: Piece) -> JsonObject:
    trained = piece.trained
    cost = {field: getattr(trained, field) for field in ("base_tokens", "reward_calls", "first_bias", "seconds")}
    return {"task": piece.task.name, "seed": piece.seed, "trained": trained.stack is not None} | cost


def measure_method(piece: Piece, method: str, count: int, run: Run) -> JsonObject:
    from benchmarks.bench_tasks.measure import measured

    row = measured(piece, method, count)
    message = f"{piece.task.name}, seed {piece.seed}: {method} with {count} rows: reward {row['reward']:.3f}"
    run.metrics({field: row[field] for field in METRICS}, message)
    return row


def measure_tilt(piece: Piece, method: str, strength: float) -> JsonObject:
    """At one row. ``tilted``: whether the aligned model has a tilt at all, or the piece a static bias."""
    from benchmarks.bench_tasks.measure import measured
    from benchmarks.bench_tasks.methods import at_strength

    row = measured(piece, method, 1, at_strength(piece, method, strength))
    ours = getattr(piece.trained.stack, "tilt", None) is not None
    return row | {"strength": strength, "tilted": ours if method == "iro" else bool(piece.trained.static_biases)}


def measure_iteration(piece: Piece, job: JsonObject, iteration: JsonObject, count: int) -> JsonObject:
    """Of the model of a row of the job's history. ``chosen``: whether the job took it."""
    from benchmarks.bench_tasks.measure import measured
    from benchmarks.bench_tasks.methods import Iro

    row = measured(piece, "iro", count, Iro(piece, piece.load(iteration["path"])))
    return row | {"iteration": iteration["step"], "chosen": iteration["step"] == job["best_iteration"]}


JOB = Job(
    name="bench.tasks",
    summary="Decoding methods on eight tasks at equal base tokens: reward, an unseen judge, costs, paired tests",
    Config=BenchTasksConfig,
    run=run,
    presets=PRESETS,
)
