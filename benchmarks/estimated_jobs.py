"""The jobs of ``benchmarks.estimates``: what each is about, and what it gained and took."""

from __future__ import annotations

import argparse
import json
import math
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.alarms import python_grader, write_rows
from benchmarks.tasks import TASKS
from benchmarks.tasks.brevity import BREVITY
from iro_server import JsonObject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iro_server.engines.embedded import EmbeddedEngine

PLANTED = {
    "constant": python_grader("0.0"),
    "not a number": python_grader("float('nan')"),
    "flaky": python_grader("__import__('random').random()"),
    "slow and exploitable": python_grader("__import__('time').sleep(0.02) or text.count(' the ')"),
}
PLANTED_TOKENS = 24
POLL = 0.5  # seconds between two looks at a job's folder


@dataclass(frozen=True)
class Case:
    """``config``: of the alignment job in ``folder``."""

    name: str
    folder: Path
    config: JsonObject

    @property
    def training_file(self) -> Path:
        return Path(self.config["training_file"])

    @property
    def validation_file(self) -> Path:
        return Path(self.config["validation_file"])


class EngineLoader:
    """The frozen model, opened at the first job that needs it."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self._engine: EmbeddedEngine | None = None

    def open(self) -> EmbeddedEngine:
        from iro_server.engines.embedded import EmbeddedEngine
        from iro_server.engines.prepare import prepare_model

        if self._engine is None:
            self._engine = self.stack.enter_context(EmbeddedEngine(prepare_model()))
        return self._engine


def piece_case(pieces: Path, name: str, seed: int) -> Case | None:
    """The job of a piece of ``iro run bench.tasks``; None where it has not finished."""
    folder = pieces / "pieces" / f"{name}-{seed}" / "align"
    if not (folder / "result.json").exists():
        return None
    config: JsonObject = json.loads((folder / "config.json").read_text())["config"]
    files = {field: str(folder.parent / Path(config[field]).name) for field in ("training_file", "validation_file")}
    return Case(name, folder, config | files)


def sized_case(folder: Path, name: str, args: argparse.Namespace) -> Case:
    """A job of the sizes that were asked for, to be run in ``folder``."""
    from iro_server.engines.prepare import prepare_model

    task = BREVITY if name in PLANTED else TASKS[name]
    most = PLANTED_TOKENS if name in PLANTED else task.max_tokens
    written = partial(write_rows, folder, task.prompts, args.seed)
    config = {
        "model_dir": str(prepare_model()),
        "training_file": str(written("train", args.train_prompts)),
        "validation_file": str(written("validation", 2 * args.validation_prompts)),
        "validation_prompts": args.validation_prompts,
        "grader": PLANTED[name] if name in PLANTED else task.grader(),
        "iterations": 1,
        "rollouts_per_prompt": args.job_rollouts,
        "chunk_length": 4,
        "max_tokens": min(most, args.max_tokens),
        "counted_tokens": 1500,
        "seed": args.seed,
    }
    return Case(name, folder / "align", config)


def realised(case: Case, engine: EngineLoader) -> JsonObject:
    """What the job gained, which is run where it is not finished; ``failed``: the code of its error, and no gain.

    ``spent["disk_bytes"]``: the most that the folder of a job held that was run here.
    """
    from benchmarks.bench_tasks.piece import spent

    failed, peak = None, None
    if not (case.folder / "result.json").exists():
        with largest_size(case.folder) as size:
            failed = run_job(case, engine.open())
        peak = size()
    took = spent(case.folder)
    took |= {} if peak is None else {"disk_bytes": peak}
    gain, error, is_shown = (0.0, 0.0, False) if failed else gain_of(case.folder)
    return {"gain": gain, "error": error, "is_shown": is_shown, "failed": failed, "spent": took}


def run_job(case: Case, engine: EmbeddedEngine) -> str | None:
    """The code of the error that it ends with."""
    from benchmarks.engine_job import engine_job
    from training.iro.data import AlignError

    try:
        engine_job(engine, Path(case.config["model_dir"])).execute(case.config, case.folder)
    except AlignError as error:
        return error.code
    return None


def gain_of(folder: Path) -> tuple[float, float, bool]:
    """The final check's gain over the frozen model on prompts that chose nothing, its standard error, and whether its
    95 % Student interval is above 0."""
    from training.checkpoints import open_checkpoints
    from training.iro.diagnostics import mean_and_error, mean_and_half_width
    from training.iro.final_check import gains_of
    from training.iro.validation import average

    checkpoints = open_checkpoints(str(folder / "checkpoints"))

    def rows_of(prefix: str) -> list[Any]:
        names = [f"{prefix}-{number}" for number in range(len(checkpoints.names()))]
        return [row for name in names if name in checkpoints.names() for row in checkpoints.load(name)["rows"]]

    before, after = ({row["prompt"]: row for row in average(rows_of(prefix))} for prefix in ("check-0", "check-best"))
    assert before.keys() == after.keys() and before
    gains = gains_of(list(before.values()), [after[prompt] for prompt in before])
    gain, error = mean_and_error(gains)
    return float(gain), 0.0 if math.isnan(error) else float(error), gain - mean_and_half_width(gains)[1] > 0


@contextmanager
def largest_size(folder: Path) -> Iterator[Callable[[], int]]:
    """The most bytes that ``folder`` held at once while the context was open, seen every ``POLL`` seconds."""
    largest, done = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while True:
            largest = max(largest, _bytes_in(folder))
            if done.wait(POLL):
                return

    watcher = threading.Thread(target=watch, name="folder size")
    watcher.start()
    try:
        yield lambda: largest
    finally:
        done.set()
        watcher.join()


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # removed since it was listed
            continue
    return total
