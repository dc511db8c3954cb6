"""Several runs of ``bench.tasks`` in one results file: its pieces take hours, and need not be of one run."""

from __future__ import annotations

from collections.abc import Collection

from benchmarks.bench_tasks.config import ALL_TASKS, BenchTasksConfig
from benchmarks.bench_tasks.measure import comparisons, intervals, iteration_gains
from iro_server import JsonObject

LISTS = ("rows", "training", "jobs", "tuning", "tilts", "iterations")
CONTINUED = ("training", "jobs", "tuning")  # lists that two runs have alike where one goes on from the other
IDENTITY = ("task", "seed", "method", "rows", "strength", "iteration", "rate")
UNITED = ("tasks", "methods", "rows", "tilt_strengths")
PLACES = {task: place for place, task in enumerate(ALL_TASKS)}
OF_PARTS = {"engine_precision"}  # a piece's methods are compared with each other: they have the same one
MAY_DIFFER = BenchTasksConfig.extendable | OF_PARTS | {"seed"}


def merged(recorded: JsonObject, added: JsonObject) -> JsonObject:
    """A results file of the measurements of both; ``run.parts`` has the configuration and the versions of each run,
    ``run.config`` all tasks, rows and strengths of the parts and the methods that were measured.

    ValueError where the runs differ in more than tasks, methods, rows, seeds and precision, or measured the same.
    """
    first, second = recorded["run"]["config"], added["run"]["config"]
    settled = [name for name in first | second if name not in MAY_DIFFER]
    differing = [name for name in settled if setting(first, name) != setting(second, name)]
    if differing:
        raise ValueError(f"the runs differ in {', '.join(differing)}")
    lists = {name: joined(recorded.get(name, []), added.get(name, []), name) for name in LISTS}
    parts = [part for content in (recorded, added) for part in content["run"].get("parts", [content["run"]])]
    rows = lists["rows"]
    united = {name: [value for part in parts for value in part["config"].get(name, ())] for name in UNITED}
    config = second | {name: list(dict.fromkeys(values)) for name, values in united.items()}
    config = {name: value for name, value in config.items() if name not in OF_PARTS}
    config["methods"] = [name for name in config["methods"] if any(row["method"] == name for row in rows)]
    config["seed"], config["seeds"] = min(row["seed"] for row in rows), len({row["seed"] for row in rows})
    run = added["run"] | {"config": config, "seeds": sorted({row["seed"] for row in rows}), "parts": parts}
    gains = {"comparisons": comparisons(rows), "iteration_gains": iteration_gains(lists["iterations"])}
    return added | lists | gains | {"run": run, "intervals": intervals(rows)}


def setting(config: JsonObject, name: str) -> object:
    """Of a run's configuration; the default where the run is of a version without it."""
    field = BenchTasksConfig.model_fields.get(name)
    return config.get(name, None if field is None else field.default)


def without_tasks(recorded: JsonObject, tasks: Collection[str]) -> JsonObject:
    """A results file without those tasks, such as ones that are measured anew."""
    lists = {name: [row for row in recorded.get(name, []) if row["task"] not in tasks] for name in LISTS}
    run = recorded["run"]
    parts = [of_other_tasks(part, tasks) for part in run.get("parts", [run])]
    remaining = of_other_tasks(run, tasks) | {"parts": [part for part in parts if part["config"]["tasks"]]}
    return recorded | lists | {"run": remaining}


def of_other_tasks(run: JsonObject, tasks: Collection[str]) -> JsonObject:
    config = run["config"]
    return run | {"config": config | {"tasks": [task for task in config["tasks"] if task not in tasks]}}


def joined(first: list[JsonObject], second: list[JsonObject], name: str) -> list[JsonObject]:
    rows = {tuple(row.get(field) for field in IDENTITY): row for row in first}
    for row in second:
        identity = tuple(row.get(field) for field in IDENTITY)
        if name in CONTINUED and rows.get(identity) == row:
            continue
        if identity in rows:
            raise ValueError(
                f"both runs have {name} of {', '.join(str(part) for part in identity if part is not None)}"
            )
        rows[identity] = row
    return sorted(rows.values(), key=lambda row: PLACES.get(row["task"], len(PLACES)))
