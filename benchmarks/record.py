"""The command line and the results file that every benchmark has.

``results/<benchmark>/<preset>.json`` has the benchmark's numbers and, under ``run``, its name, preset, configuration,
seeds, versions, number of cores and a digest of everything else in the file. ``benchmarks.redraw`` draws the tables and
figures of the documents from these files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iro_server import JsonObject
from training.provenance import versions

NOT_CONFIG = ("benchmark", "json", "out", "results")
FOLDERS = {  # of this machine, and what stands for them in a results file
    sys.prefix: "PYTHON",
    sys.base_prefix: "PYTHON",
    str(Path(__file__).parents[1]): "PROJECT",
    str(Path.home()): "~",
    tempfile.gettempdir(): "TMP",
}


def command_line(benchmark: str, description: str | None, preset: str = "default") -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share: ``--json``, ``--out`` and ``--results``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(benchmark=benchmark)
    parser.add_argument("--json", action="store_true", help="print the results file instead of a table")
    parser.add_argument("--out", type=Path, default=Path("runs") / benchmark, help="folder of logs and figures")
    file = Path("results") / benchmark / f"{preset}.json"
    parser.add_argument("--results", type=Path, default=file, help="the results file; its name is the preset's")
    return parser


def finish(
    args: argparse.Namespace,
    numbers: JsonObject,
    report: Callable[[JsonObject], None],
    seeds: Sequence[int] = (),
) -> None:
    """Write ``args.results``; print it with ``--json``, or else call ``report`` with the numbers."""
    config = {name: value for name, value in vars(args).items() if name not in NOT_CONFIG and value is not None}
    run = {"benchmark": args.benchmark, "config": config, "seeds": list(seeds), "versions": versions()}
    text = write(args.results, run | {"cores": os.cpu_count()}, numbers)
    if args.json:
        print(text, end="")
    else:
        report(numbers)


def computed_once(path: Path, compute: Callable[[], Any], options: JsonObject | None = None) -> Any:
    """What ``compute`` returned when ``path`` did not exist yet, as JSON: an interrupted benchmark goes on after it.

    ``options``: all that the result depends on and ``path`` does not name. They are saved beside it, before the
    computation; SystemExit where it was computed, or begun, with others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if options is not None:
        _refuse_other_options(path, options)
    if not path.exists():
        path.with_suffix(".tmp").write_text(json.dumps(compute()))
        path.with_suffix(".tmp").rename(path)
        print(f"{time.strftime('%X')} {path.stem}", file=sys.stderr, flush=True)
    return json.loads(path.read_text())


def _refuse_other_options(path: Path, options: JsonObject) -> None:
    saved = path.with_suffix(".options.json")
    wanted_text = json.dumps(options, sort_keys=True)
    if not (saved.exists() or path.exists()):
        saved.write_text(wanted_text)
    saved_text = saved.read_text() if saved.exists() else "unknown options"
    if saved_text != wanted_text:
        raise SystemExit(f"{path} was run with {saved_text}, not {wanted_text}; choose another --out")


def write(path: Path, run: JsonObject, numbers: JsonObject) -> str:
    """Write a results file without paths of this machine, and return its text."""
    content = without_paths(json.loads(json.dumps({"run": run | {"preset": path.stem}, **numbers}, default=str)))
    content["run"]["sha256"] = digest(content)
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return text


def read(path: Path) -> JsonObject:
    """A results file. Raises ValueError where its content is not what a benchmark wrote."""
    content: JsonObject = json.loads(path.read_text())
    if content.get("run", {}).get("sha256") != digest(content):
        raise ValueError(f"{path} was changed after its benchmark wrote it")
    return content


def digest(content: JsonObject) -> str:
    """SHA-256 of a results file's content, the digest itself aside."""
    run = {name: value for name, value in content["run"].items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content | {"run": run}, sort_keys=True).encode()).hexdigest()


def without_paths(value: Any) -> Any:
    """``value`` with this machine's folders replaced in every text."""
    if isinstance(value, dict):
        return {name: without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if isinstance(value, str):
        for folder in sorted(FOLDERS, key=len, reverse=True):
            value = re.sub(rf"(?<![\w.]){re.escape(folder)}(?![\w.-])", FOLDERS[folder], value)
    return value
