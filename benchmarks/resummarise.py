"""Summarise results files again from the rows that they hold: ``python -m benchmarks.resummarise FILE ...``.

For a summary whose statistics changed since the file was written. Rows, configuration and versions stay those of the
run; ``run.summarised`` is the revision that summarised them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks import probes, quality_report, value_features, vllm_tilts
from benchmarks.record import read, write
from benchmarks.research import bilevel, rl_exact
from iro_server import JsonObject
from training.provenance import versions

ROOT = Path(__file__).parents[1]
SUMMARIES: dict[str, Callable[[JsonObject], JsonObject]] = {
    "bilevel.transient": lambda content: bilevel.transient(content["lengths"]),
    "probes": lambda content: {"tasks": probes.summary(content["rows"])},
    "quality": quality_report.widened,
    "rl.adrl_tabular": rl_exact.tabular_again,
    "value_features": lambda content: {"tasks": value_features.summary(content["rows"])},
    "vllm_tilts": lambda content: {
        "tasks": vllm_tilts.summary(content["rows"], read(ROOT / content["run"]["config"]["jobs"])["rows"])
    },
}


def resummarise(path: Path) -> None:
    """ValueError where the file was changed after it was written, or where its benchmark keeps no rows."""
    content = read(path)
    benchmark = content["run"]["benchmark"]
    if benchmark not in SUMMARIES:
        raise ValueError(f"{path}: results of {benchmark} have no rows to be summarised again")
    numbers = {name: value for name, value in content.items() if name != "run"} | SUMMARIES[benchmark](content)
    run = {name: value for name, value in content["run"].items() if name != "sha256"}
    write(path, run | {"summarised": versions()["git"]}, numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="results files")
    for path in parser.parse_args().files:
        try:
            resummarise(path)
        except ValueError as error:
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
