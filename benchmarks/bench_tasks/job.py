"""``iro run bench.tasks``: rewards, an unseen judge and costs of every method on every task.

A piece is a task and a seed. Its alignment job and each of its methods is a step: an interrupted run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, cast

from benchmarks.bench_tasks.config import PRESETS, BenchTasksConfig
from iro_server import JsonObject
from training.run import Job, Run

if TYPE_CHECKING:
    from iro_server.engines.embedded import EmbeddedEngine

METRICS = ("task", "method", "rows", "seed", "reward", "judge", "seconds")


def run(config: BenchTasksConfig, run: Run) -> JsonObject:
    """``rows`` of the results file, ``training`` of each piece and of its adapters, ``jobs``: what each alignment job
    says of itself, ``tuning`` of strengths, ``tilts`` at other strengths, ``intervals``, paired ``comparisons``."""
    from benchmarks.bench_tasks.engine import open_engine
    from benchmarks.bench_tasks.measure import comparisons, intervals
    from benchmarks.bench_tasks.yardsticks import YARDSTICKS, require_trl

    if set(config.methods) & set(YARDSTICKS):
        require_trl()
    rows: list[JsonObject] = []
    training: list[JsonObject] = []
    jobs: list[JsonObject] = []
    tuning: list[JsonObject] = []
    tilts: list[JsonObject] = []
    with closing(open_engine(config)) as engine:
        for seed in range(config.seeds):
            for name in config.tasks:
                piece_rows, piece_tilts = run_piece(config, name, config.seed + seed, run, engine)
                rows += piece_rows
                tilts += piece_tilts
                training += saved(run, name, config.seed + seed, ["training", *(f"{m}-training" for m in YARDSTICKS)])
                jobs += job_reports(run, name, config.seed + seed)
                tuning += saved(run, name, config.seed + seed, [f"{method}-strength" for method in config.methods])
    return {
        "rows": rows,
        "training": training,
        "jobs": jobs,
        "tuning": tuning,
        "tilts": tilts,
        "intervals": intervals(rows),
        "comparisons": comparisons(rows),
    }


def job_reports(run: Run, name: str, seed: int) -> list[JsonObject]:
    """Of a piece's job, where its rewards were not all equal: the gain on prompts that chose nothing, half its 95 %
    interval, whether it is above 0, the correlation of values with rewards, and the way it is served if it is."""
    result = run.folder / "pieces" / f"{name}-{seed}" / "align" / "result.json"
    if not result.exists():
        return []
    content = json.loads(result.read_text())
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


def saved(run: Run, name: str, seed: int, steps: Iterable[str]) -> list[JsonObject]:
    """The values of those steps of a piece that it has."""
    names = [f"{name}-{seed}-{step}" for step in steps]
    return [cast(JsonObject, run.load(step)) for step in names if run.has(step)]


def run_piece(
    config: BenchTasksConfig, name: str, seed: int, run: Run, engine: EmbeddedEngine
) -> tuple[list[JsonObject], list[JsonObject]]:
    """The result rows of a task at a seed, and those of its tilt at other strengths."""
    from benchmarks.bench_tasks.methods import METHODS
    from benchmarks.bench_tasks.piece import open_piece
    from benchmarks.tasks import TASKS
    from iro_server.graders.parsing import parse_grader

    with parse_grader(TASKS[name].grader()) as grader:
        piece = open_piece(config, name, seed, run, engine, grader)

        def train() -> JsonObject:
            trained = piece.trained
            cost = {field: getattr(trained, field) for field in ("base_tokens", "reward_calls", "seconds")}
            return {"task": name, "seed": seed, "trained": trained.stack is not None} | cost

        def measure(method: str, count: int) -> JsonObject:
            from benchmarks.bench_tasks.measure import measured

            row = measured(piece, method, count)
            message = f"{name}, seed {seed}: {method} with {count} rows: reward {row['reward']:.3f}"
            run.metrics({field: row[field] for field in METRICS}, message)
            return row

        def measure_tilt(strength: float) -> JsonObject:
            from benchmarks.bench_tasks.measure import measured
            from benchmarks.bench_tasks.methods import Iro

            row = measured(piece, "iro", 1, Iro(piece, piece.trained.stack, strength=strength))
            return row | {"strength": strength, "tilted": getattr(piece.trained.stack, "tilt", None) is not None}

        run.step(f"{name}-{seed}-training", train, "training")
        rows = [
            run.step(f"{name}-{seed}-{method}-{count}", partial(measure, method, count), "decoding")
            for method in config.methods_for(name, seed - config.seed)
            for count in config.rows
            if METHODS[method].takes(count)
        ]
        tilts = [
            run.step(f"{name}-{seed}-iro-at-{strength:g}", partial(measure_tilt, strength), "decoding")
            for strength in config.tilt_strengths
        ]
    return rows, tilts


JOB = Job(
    name="bench.tasks",
    summary="Decoding methods on eight tasks at equal base tokens: reward, an unseen judge, costs, paired tests",
    Config=BenchTasksConfig,
    run=run,
    presets=PRESETS,
)
