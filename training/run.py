"""What every batch job is: a typed config, a function, and a run folder.

out/config.json        the config, SHA-256 of its files, versions and git revision it started with
out/metrics.jsonl      one row a step, the one record of the run
out/checkpoints/*.pt   what `Run.step` and `Run.checkpoint` saved; a killed run goes on from the last of them. With
                       IRO_STORAGE they are in object storage instead, where config.json says
out/checkpoints/*.arrow  tables of those values, as Hugging Face datasets reads them
out/tensorboard/       the numbers of metrics.jsonl as scalars
out/figures/*.png      drawn from the files above and result.json only, so that they can be redrawn
out/figures.json       their names, once all are drawn
out/lock               held by the process that works in the folder
out/metrics.csv        metrics.jsonl as a table, once the run has ended
out/result.json        config, seeds, versions, checks, and what the function returned; written last
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypedDict, TypeVar, overload

import numpy as np
from opentelemetry import trace
from pydantic import BaseModel, ConfigDict, Field

from training import run_folder
from training.checkpoints import VARIABLE as STORAGE_VARIABLE
from training.checkpoints import About, SavedValue, StorageUnavailable, WithTables, claim, open_checkpoints
from training.json_values import JsonObject
from training.metrics import Board, metrics_csv, read_rows
from training.provenance import input_hashes, versions

if TYPE_CHECKING:
    from datasets import Dataset

Value = TypeVar("Value")
_tracer = trace.get_tracer("iro")  # its spans go where the process that runs the job sends them, if anywhere


class RunEvent(TypedDict):
    """What a run reports to whoever follows it. ``type``: "message", "metrics", "stage", "progress" or a job's word."""

    type: str
    level: str
    message: str
    data: JsonObject


class Check(TypedDict):
    """A claim of a run and whether it holds."""

    name: str
    expected: object
    got: object
    holds: bool


class Cancelled(Exception):
    """The run was asked to stop. Its checkpoints stay, and the same call continues from them."""


class RunError(ValueError):
    """The run folder belongs to another run, or another process works in it."""


class JobConfig(BaseModel):
    """The base of every job's config: frozen, without unknown fields, with a seed.

    ``movable``: fields that say where the work is done and not what it is; a run may continue with other values.
    ``extendable``: fields that say which steps there are and leave what a step computes alone; a run, a finished one
    too, may go on to the steps of other values, and its record is then of those.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    movable: ClassVar[frozenset[str]] = frozenset()
    extendable: ClassVar[frozenset[str]] = frozenset()

    seed: int = Field(0, ge=0, description="Of all random draws.")


AnyConfig = TypeVar("AnyConfig", bound=JobConfig)


@dataclass
class Run:
    """One run at one seed: its folder, seeds, metrics, checkpoints, checks and events.

    ``planned_steps``: how many steps it will take, for events that tell how far it is. ``location``: where checkpoints
    are, if not in the folder.
    """

    folder: Path
    seed: int
    on_event: Callable[[RunEvent], None] | None = None
    should_stop: Callable[[], bool] | None = None
    checks: list[Check] = field(default_factory=list)
    planned_steps: int | None = None
    location: str | None = None

    def __post_init__(self) -> None:
        (self.folder / "figures").mkdir(parents=True, exist_ok=True)
        self.checkpoints = open_checkpoints(self.location or str(self.folder / "checkpoints"), self.folder / "cache")
        self._metrics = self.folder / "metrics.jsonl"
        self._metrics.touch()
        # Rows past the last checkpoint will be computed, and written, again.
        saved = max((self.checkpoints.about(name)["metrics_bytes"] for name in self.checkpoints.names()), default=0)
        if self._metrics.stat().st_size < saved:
            raise RunError(f"{self._metrics} has lost rows of finished steps; choose another folder")
        os.truncate(self._metrics, saved)
        self._board: Board | None = None
        self._steps = self._computed = 0  # steps asked for, and those of them that were not on disk
        self._stage: str | None = None

    def derive_seed(self, *path: int) -> int:
        return derive_seed(self.seed, *path)

    def rng(self, *path: int) -> np.random.Generator:
        return rng_of(self.seed, *path)

    def metrics(self, row: Mapping[str, object], message: str = "") -> None:
        """Append ``row`` to metrics.jsonl and to TensorBoard's, and send it on. What is not finite becomes null."""
        json_row: JsonObject = jsonable(row)
        with self._metrics.open("a") as file:
            file.write(json.dumps(json_row) + "\n")
        if self._board is None:
            self._board = Board(self.folder / "tensorboard", read_rows(self.folder))
        else:
            self._board.add(json_row)
        self.emit("metrics", message, json_row)

    def emit(self, type: str, message: str = "", data: Mapping[str, object] | None = None, level: str = "info") -> None:
        """Send an event to whoever follows the run."""
        if self.on_event is not None:
            self.on_event({"type": type, "level": level, "message": message, "data": jsonable(data or {})})

    def check(self, name: str, *, expected: object, got: object, holds: bool) -> None:
        """State a claim of the run for result.json."""
        self.checks.append(jsonable({"name": name, "expected": expected, "got": got, "holds": bool(holds)}))

    def checkpoint(self, name: str, value: object, seconds: float = 0.0) -> None:
        """Save ``value`` (tensors, numbers, strings, lists and dicts; WithTables) whole or not at all.

        ``seconds``: what it took to compute.
        """
        with self._metrics.open("a") as file:
            os.fsync(file.fileno())
        about: About = {"metrics_bytes": self._metrics.stat().st_size, "seconds": seconds}
        self.checkpoints.save(name, value, about)

    def has(self, name: str) -> bool:
        return self.checkpoints.has(name)

    def load(self, name: str) -> SavedValue:
        return self.checkpoints.load(name)

    def table(self, name: str, table: str) -> Dataset:
        """A table of the value ``name``, mapped into memory. KeyError for one that was never saved, or dropped."""
        return self.checkpoints.table(name, table)

    def drop_table(self, name: str, table: str) -> None:
        """Free the disk of a table that no later step reads."""
        self.checkpoints.drop_table(name, table)

    def seconds(self, names: Iterable[str]) -> float:
        """What the steps ``names`` took, by whichever process computed them."""
        return sum(self.checkpoints.about(name)["seconds"] for name in names)

    def enter(self, stage: str | None) -> None:
        """Tell whoever follows what is done from now on, one word, where that changes. Cancelled when asked to stop."""
        self.stop_if_asked()
        if stage not in (None, self._stage):
            self._stage = stage
            self.emit("stage", data={"stage": stage})

    @overload
    def step(
        self, name: str, compute: Callable[[], WithTables[Value]], stage: str | None = None, seconds: float = 0.0
    ) -> Value: ...

    @overload
    def step(
        self, name: str, compute: Callable[[], Value], stage: str | None = None, seconds: float = 0.0
    ) -> Value: ...

    def step(
        self, name: str, compute: Callable[[], object], stage: str | None = None, seconds: float = 0.0
    ) -> SavedValue:
        """The value of a step, computed at most once in the life of the run folder.

        Write the step's metrics inside ``compute``: then they are kept, or dropped, together with its value.
        ``stage``: what is done there, as ``enter`` takes it. ``seconds``: spent on the step before.
        """
        self._steps += 1
        if not self.has(name):
            self.enter(stage)
            with _tracer.start_as_current_span(stage or "step", attributes={"iro.step": name}):
                began = time.monotonic()
                value = compute()
                self.checkpoint(name, value, seconds + time.monotonic() - began)
            self._computed += 1
            if self.planned_steps is not None:
                self.emit("progress", data={"done": self._steps, "total": self.planned_steps})
        return self.load(name)

    def stop_if_asked(self) -> None:
        if self.should_stop is not None and self.should_stop():
            raise Cancelled(f"stopped; {self.folder} keeps what was done")

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar on the terminal, ten messages at most elsewhere. The function it gives advances by one, and raises
        Cancelled when asked to stop."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(description, total=total)
            count, computed = itertools.count(1), self._computed

            def advance() -> None:
                bar.advance(task)
                done = next(count)
                tenth = done * 10 // total > (done - 1) * 10 // total
                if tenth and self._computed > computed and not console.is_terminal:
                    self.emit("message", f"{description}: {done} of {total}")
                self.stop_if_asked()

            yield advance

    def close(self) -> None:
        self.checkpoints.close()
        if self._board is not None:
            self._board.close()


@dataclass(frozen=True)
class Job(Generic[AnyConfig]):
    """A batch job, registered under the entry-point group ``iro.jobs``.

    ``run`` returns what result.json should hold beside config, seeds, versions and checks. ``draw`` makes the figures
    of a finished run folder.
    """

    name: str
    summary: str
    Config: type[AnyConfig]
    run: Callable[[AnyConfig, Run], Mapping[str, object]]
    presets: Mapping[str, JsonObject] = field(default_factory=dict)
    draw: Callable[[Path], None] | None = None

    def execute(
        self,
        config: Mapping[str, object] | AnyConfig,
        out: Path,
        *,
        seeds: int = 1,
        on_event: Callable[[RunEvent], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> JsonObject:
        """Run, or go on with what ``out`` holds of the same run, and return result.json.

        Several seeds (config.seed, +1, …) run one after another in ``out/seed-<seed>``; more seeds of the same config
        may follow there, and the record is then of those. Raises pydantic's ValidationError for a bad config,
        ValueError for ``seeds`` below 1, RunError if another process works in ``out`` or if it holds another run, one
        of other input files, or one of several seeds where this is of one and the reverse, Cancelled once
        ``should_stop`` is true, StorageUnavailable where checkpoints cannot be kept or read.
        """
        if seeds < 1:
            raise ValueError(f"seeds: 1 or more, not {seeds}")
        config = config if isinstance(config, self.Config) else self.Config.model_validate(config)
        out = Path(out)
        if seeds == 1:
            if run_folder.has_several_seeds(out):
                raise RunError(f"{out} holds a run of several seeds; choose another folder for a run of one")
            return self._execute(config, out, on_event, should_stop)
        if run_folder.has_single_run(out):
            raise RunError(f"{out} holds a run of one seed; choose another folder for several seeds")
        free = config.movable | config.extendable | {"seed"}
        if other := run_folder.other_seeds(out, self._header(config), config, free):
            raise RunError(f"{out} holds {other}; choose another folder")
        per_seed = []
        for seed in range(config.seed, config.seed + seeds):
            seeded = config.model_copy(update={"seed": seed})
            per_seed.append(self._execute(seeded, out / f"seed-{seed}", on_event, should_stop))
        result = {key: per_seed[0][key] for key in ("job", "config", "versions")}
        result["seeds"] = [record["config"]["seed"] for record in per_seed]
        result["checks"] = [
            check | {"seed": record["config"]["seed"]} for record in per_seed for check in record["checks"]
        ]
        result["per_seed"] = per_seed
        _write_json(out / "result.json", result)
        return result

    def _execute(
        self,
        config: AnyConfig,
        out: Path,
        on_event: Callable[[RunEvent], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> JsonObject:
        header = self._header(config)
        with run_folder.hold(out) as is_free:
            if not is_free:
                raise RunError(f"another process is working in {out}; wait for it or choose another folder")
            return self._execute_alone(header, config, out, on_event, should_stop)

    def _header(self, config: AnyConfig) -> JsonObject:
        """What config.json says of a run."""
        fields = config.model_dump(mode="json")
        return {"job": self.name, "config": fields, "inputs": input_hashes(config), "versions": versions()}

    def _execute_alone(
        self,
        header: JsonObject,
        config: AnyConfig,
        out: Path,
        on_event: Callable[[RunEvent], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> JsonObject:
        """Run in a folder whose lock this process holds."""
        started = out / "config.json"
        location = None
        if started.exists():
            before = json.loads(started.read_text())
            location = before.pop("checkpoints", None)
            if other := run_folder.other_run(before, header, config, config.movable | config.extendable):
                raise RunError(f"{out} holds {other}; choose another folder")
            steps = {name: header["config"][name] for name in config.extendable}
            header = before | {"config": before["config"] | steps}
        elif storage := os.environ.get(STORAGE_VARIABLE):
            location = claim(storage, f"{self.name}-{out.absolute().name}")
        finished = out / "result.json"
        if not run_folder.is_record_of(finished, header, config.extendable):
            with closing(Run(out, config.seed, on_event, should_stop, location=location)) as run:
                _write_json(started, header | ({"checkpoints": location} if location else {}))
                try:
                    returned = self.run(config, run)
                except Exception as error:
                    can_go_on = isinstance(error, Cancelled | StorageUnavailable) or run.checkpoints.names()
                    if not can_go_on and not finished.exists():
                        started.unlink()  # a corrected config may use the folder
                    raise
            (out / "metrics.csv").write_text(metrics_csv(out))
            run_folder.forget_figures(out)
            _write_json(finished, header | {"seeds": [config.seed], "checks": run.checks, **returned})
        if self.draw is not None and not run_folder.has_figures(out):
            self.draw(out)
            run_folder.note_figures(out)
        result: JsonObject = json.loads(finished.read_text())
        return result


def derive_seed(seed: int, *path: int) -> int:
    """A 63-bit seed from a run's seed and ``path`` alone, so that a resumed run draws what it would have.

    NumPy pads up to four numbers with zeros, so that paths which differ only in trailing zeros give one seed:
    ``derive_seed(5) == derive_seed(5, 0)``. Let the paths of a run differ elsewhere. A number of 2³² or more counts
    as two.
    """
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def rng_of(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, *path))


def check_names(names: Iterable[str], available: Collection[str], kind: str) -> None:
    """Raises ValueError if one of ``names``, of a ``kind`` such as "method", is not available."""
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(f"no {kind} {', '.join(unknown)}; there are {', '.join(available)}")


def jsonable(value: object) -> Any:
    """``value`` with NumPy numbers made plain and those JSON has no word for (NaN, infinities) made None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _write_json(path: Path, value: object) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(jsonable(value), indent=2) + "\n")
    os.replace(partial, path)
