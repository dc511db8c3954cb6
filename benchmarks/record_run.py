"""Record a finished batch job: ``python -m benchmarks.record_run RUN_FOLDER --preset NAME``.

Writes ``results/<job>/<preset>.json`` from the folder's ``result.json``, as ``record.write`` writes a benchmark's. Of a
research job it keeps the claims of its paper (``KEPT``), of others all numbers. ``--add`` adds further tasks,
methods or seeds of ``bench.tasks`` to a file that is there, ``--replace`` first takes out what it has of the run's
tasks; ``--untimed`` leaves out seconds, where the machine had other work to do.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_tasks.merging import merged, without_tasks
from benchmarks.record import read, write
from benchmarks.research import bilevel, federated, rl, rl_exact, rl_features, speech, theory
from iro_server import JsonObject

PROVENANCE = ("job", "config", "seeds", "versions", "inputs")
KEPT: dict[str, Callable[[JsonObject], JsonObject]] = {
    "bilevel.bl_just": speech.bl_just,
    "bilevel.hyper_cleaning": bilevel.hyper_cleaning,
    "bilevel.problems": bilevel.problems,
    "bilevel.quadratic": bilevel.quadratic,
    "bilevel.transient": bilevel.transient,
    "federated.fadas": federated.fadas,
    "federated.reviews": federated.reviews,
    "federated.values": federated.values,
    "rl.adrl_doses": rl.doses,
    "rl.adrl_pointmass": rl.pointmass,
    "rl.adrl_sepsis": rl_exact.sepsis,
    "rl.adrl_tabular": rl_exact.tabular,
    "rl.sf_gpi": rl_features.successor_features,
    "theory.cot": theory.cot,
    "theory.gradient_flow": theory.gradient_flow,
    "theory.icl": theory.icl,
}
ADDED: dict[str, Callable[[JsonObject, JsonObject], JsonObject]] = {"bench.tasks": merged}
LONG = ("texts",)  # fields of a row that are kept in the run folder alone


def record(
    folder: Path,
    preset: str,
    results: Path = Path("results"),
    add: bool = False,
    timed: bool = True,
    replace: bool = False,
) -> Path:
    """The results file of the run in ``folder``; ``add``: with what the file has already; ``replace``: but of the run's
    tasks. Not ``timed``: rows have no seconds.

    ValueError where the run has not finished, or cannot be added.
    """
    path = folder / "result.json"
    if not path.exists():
        raise ValueError(f"{folder} has no result.json: the run has not finished")
    content: JsonObject = json.loads(path.read_text())
    run = {"benchmark": content["job"], "config": content["config"], "seeds": content["seeds"]}
    run |= {"versions": content["versions"], "cores": os.cpu_count()}
    if content["job"] in KEPT:
        numbers = KEPT[content["job"]](content)
    else:
        numbers = {name: shortened(value) for name, value in content.items() if name not in PROVENANCE}
    if not timed:
        numbers = {name: without_seconds(value) for name, value in numbers.items()}
    target = results / str(content["job"]) / f"{preset}.json"
    if (add or replace) and target.exists():
        if content["job"] not in ADDED:
            raise ValueError(f"a run of {content['job']} cannot be added to another")
        recorded = without_tasks(read(target), content["config"]["tasks"]) if replace else read(target)
        numbers = ADDED[content["job"]](recorded, {"run": run, **numbers})
        run = numbers.pop("run")
    write(target, run, numbers)
    return target


def shortened(value: object) -> object:
    """Rows without their long fields."""
    if not isinstance(value, list):
        return value
    return [
        {name: field for name, field in row.items() if name not in LONG} if isinstance(row, dict) else row
        for row in value
    ]


def without_seconds(value: object) -> object:
    """Rows whose ``seconds`` are None."""
    if not isinstance(value, list):
        return value
    return [row | {"seconds": None} if isinstance(row, dict) and "seconds" in row else row for row in value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--preset", required=True, help="name of the results file")
    parser.add_argument("--add", action="store_true", help="keep what the results file has, and add this run")
    parser.add_argument("--replace", action="store_true", help="add, in place of what the file has of the run's tasks")
    parser.add_argument("--untimed", action="store_true", help="leave out seconds: the machine had other work to do")
    args = parser.parse_args()
    try:
        print(record(args.folder, args.preset, add=args.add, timed=not args.untimed, replace=args.replace))
    except ValueError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
