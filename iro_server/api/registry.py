"""Model names: what each stands for, and how it searches by default."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from iro_server import JsonObject
from iro_server.alignment.definition import ServedDefaults
from iro_server.decoding.base import Scorer, SearchParams
from iro_server.engines.base import Engine, Steering
from iro_server.graders.base import GraderError
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.loaded import HeldGrader, Loaded
from iro_server.graders.parsing import parse_grader
from iro_server.store.database import Sessions
from iro_server.store.named import find_named
from iro_server.store.tables import Checkpoint, Job, Model, now
from value_heads.backbone import LoraValues
from value_heads.bundle import BundleMismatch, load_bundle
from value_heads.compose import compose
from value_heads.features import HEAD_STATE
from value_heads.shared import free_memory
from value_heads.stack import ValueStack

Values = ValueStack | LoraValues
log = logging.getLogger("iro.api")
SWEEP = 60.0  # seconds between two looks for what is not used any more
LISTED = "GET /v1/models lists those that do"


class ModelNotFound(LookupError):
    """The project has no model of the name."""


class ModelMismatch(ValueError):
    """A model's value functions do not fit the frozen model that is served."""


class CompositeMismatch(ValueError):
    """Models whose value functions cannot be added."""


class ModelUnreadable(Exception):
    """A model's value functions cannot be loaded."""


@dataclass(frozen=True)
class ServedModel:
    """A frozen model and, where it is aligned, the value functions that steer it.

    ``path``: of its bundle. ``composed``: its values are a weighted sum of several models'. ``owned_by_caller``: the
    calling project aligned it. To another project no text of the grader's may be shown: the
    grader is the owner's code, and its errors may tell of what it has read.
    """

    name: str
    engine: Engine
    defaults: ServedDefaults
    values: Values | None = None
    grader: HeldGrader | None = None
    owned_by_caller: bool = True
    path: str | None = None
    composed: bool = False

    @property
    def reads_numbers(self) -> bool:
        """Whether its values read numbers of the output head's state, which the engine does not report whole."""
        return self.values is not None and not self.engine.info.hidden and HEAD_STATE in self.values.layers

    def scorer(self, params: SearchParams) -> Scorer | None:
        """The value functions at the request's betas. ValueError where the betas do not suit them."""
        if params.betas is None:
            return self.values
        if self.values is None:
            raise ValueError(f"{self.name} has no value functions for betas to weigh")
        if self.composed:
            raise ValueError("betas weigh the iterations of one model: leave them out with values")
        return self.values.with_betas(params.betas)

    def steering(self, params: SearchParams) -> Steering | None:
        """The tilt of its logits at the request's strength. ValueError where it has none to be strong."""
        tilt = self.values.tilt if self.values is not None else None
        if not params.strength:
            return None
        if tilt is None:
            raise ValueError(f"{self.name} has no tilt: leave strength out, or 0")
        if self.composed and (missing := self.engine.info.cannot_apply(tilt)):
            raise ValueError(
                f"{self.name} is served where no tilt of several models has {', '.join(sorted(missing))}: name models "
                "without it, or set strength to 0"
            )
        if not self.engine.info.drift and (params.max_kl is not None or params.rule.samples):
            raise ValueError(f"{self.name} is served where KL is not known: leave out max_kl, and smc with a strength")
        return Steering(tilt, params.strength, params.max_kl)


class ModelRegistry:
    """The base model, and the aligned models and checkpoints in the database. A bundle is loaded when it is called.

    At most ``most`` bundles stay in memory, and as many graders, each until it was not used for ``idle`` seconds.
    """

    def __init__(
        self,
        engine: Engine,
        sessions: Sessions,
        model_dir: Path | None,
        grader_environment: GraderEnvironment,
        most: int,
        idle: float,
    ) -> None:
        self.engine, self.sessions, self.model_dir = engine, sessions, model_dir
        self.grader_environment = grader_environment
        self.created = now()
        self.values: Loaded[Values] = Loaded(most, idle)
        self.graders: Loaded[HeldGrader] = Loaded(most, idle, HeldGrader.drop)
        self.composites: Loaded[ValueStack] = Loaded(most, idle)

    @property
    def base(self) -> str:
        return self.engine.info.name

    def resolve(self, name: str, project: str) -> ServedModel:
        """The model that the project calls so. Raises ModelNotFound, ModelMismatch or ModelUnreadable."""
        if name == self.base:
            return ServedModel(name, self.engine, ServedDefaults())
        stored_bundle = self._find(name, project)
        if stored_bundle is None:
            raise _not_found(name)
        path, stored, job = stored_bundle
        defaults = ServedDefaults.model_validate(stored)
        try:
            values = self.values.get(path, lambda: self._load(name, path))
        except ModelUnreadable:
            if self._find(name, project) is None:  # deleted, or dropped by its job, this instant
                raise _not_found(name) from None
            raise
        owned = job.project == project
        grader = self._grader(job, project)
        return ServedModel(name, self.engine, defaults, values, grader, owned_by_caller=owned, path=path)

    def composite(self, parts: Sequence[tuple[ServedModel, float]]) -> Values | None:
        """The weighted sum of aligned models' values; None where all weights are 0. Raises CompositeMismatch."""
        parts = [(model, weight) for model, weight in parts if weight]
        if not parts:
            return None
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0].values
        stacks = []
        for model, _ in parts:
            if not isinstance(model.values, ValueStack):
                raise CompositeMismatch(
                    f"The model '{model.name}' has LoRA value functions, each a pass of its own through a backbone: "
                    "they fold with no others. Only linear and mlp value functions are mixed."
                )
            stacks.append(model.values)
        weights = [weight for _, weight in parts]
        key = json.dumps(sorted((model.path, weight) for model, weight in parts))
        try:
            return self.composites.get(key, lambda: self._composed(stacks, weights))
        except ValueError as error:
            names = ", ".join(model.name for model, _ in parts)
            raise CompositeMismatch(f"The models {names} cannot be mixed: {error}.") from error

    def _composed(self, stacks: Sequence[ValueStack], weights: Sequence[float]) -> ValueStack:
        composite = compose(stacks, weights)
        self._check_head_rows(composite)
        return composite

    def drop(self, path: str, job_id: str) -> None:
        """Let go of a deleted model. Requests that use it go on."""
        self.values.drop(path)
        self.composites.drop_where(lambda key: path in (part for part, _ in json.loads(key)))
        self.graders.drop_where(lambda key: key.startswith(f"{job_id} "))
        free_memory()

    async def sweep(self, stopping: asyncio.Event) -> None:
        """Let go of what is not used any more, until ``stopping`` is set."""
        while not stopping.is_set():
            try:
                await asyncio.to_thread(self._drop_idle)
            except Exception:  # a grader that does not end: the next round goes on with the others
                log.exception("could not let go of models that are not used")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), min(SWEEP, self.values.idle))

    def _drop_idle(self) -> None:
        if self.values.drop_idle() + self.composites.drop_idle() + self.graders.drop_idle():
            free_memory()

    def close(self) -> None:
        """End the graders' processes."""
        self.graders.clear()

    def _find(self, name: str, project: str) -> tuple[str, Mapping[str, object], Job] | None:
        with self.sessions() as session:
            row_and_job = find_named(session, name, project)
        if row_and_job is None:
            return None
        row, job = row_and_job
        return row.path, row.search if isinstance(row, Model) else _checkpoint_defaults(row, job), job

    def _grader(self, job: Job, project: str) -> HeldGrader | None:
        """What the model was aligned to, for the calls of ``project`` alone: a python grader's processes may keep what
        they are sent. It starts them when it first grades. None where it may not run here any more: a model answers
        without it, but where it is to pick."""
        grader_environment = self.grader_environment.model_copy(update={"project": job.project, "caller": project})
        make = partial(parse_grader, job.method["reinforcement"]["grader"], grader_environment)
        try:
            key = f"{job.id} {project} {grader_environment.any_endpoint}"  # until there is a key, graders ask any
            return self.graders.get(key, lambda: HeldGrader(make))
        except GraderError as error:  # such as python graders that are switched off since
            log.info("%s: its grader cannot be used here: %s", job.model_name, error)
            return None

    def _load(self, name: str, path: str) -> Values:
        info = self.engine.info
        try:
            values = load_bundle(
                Path(path),
                model_hash=info.model_hash,
                template_hash=info.template_hash,
                backbone_dir=self.model_dir,
            )
        except BundleMismatch as error:
            raise ModelMismatch(f"The model '{name}' cannot be served with {self.base}: {error}") from error
        except (ValueError, OSError) as error:
            raise ModelUnreadable(f"The model '{name}' cannot be loaded: {error}") from error
        if values.tilt is not None and (missing := info.cannot_apply(values.tilt)):
            message = f"The model '{name}' tilts the logits of {self.base}, which is served where no tilt has"
            raise ModelMismatch(f"{message} {', '.join(sorted(missing))}. Align it anew.")
        if info.lacks(values.layers):
            message = f"The model '{name}' reads hidden states of {self.base}, which is served without them here."
            raise ModelMismatch(f"{message} Align it anew.")
        if isinstance(values, ValueStack):
            try:
                self._check_head_rows(values)
            except ValueError as error:
                raise ModelMismatch(f"The model '{name}' cannot be served here: {error}. Align it anew.") from error
        return values

    def _check_head_rows(self, values: ValueStack) -> None:
        """ValueError where the values read more of the output head's state than the engine reports."""
        info = self.engine.info
        if info.hidden or HEAD_STATE not in values.layers:
            return
        count = len(values.projected()[1])
        if count > info.head_values:
            raise ValueError(
                f"its values read {count} numbers of the states of {self.base}, which is served where "
                f"{info.head_values} can be read"
            )


def _checkpoint_defaults(checkpoint: Checkpoint, job: Job) -> JsonObject:
    """The job's defaults with the search that the checkpoint's metrics were measured with. Checkpoints of earlier
    versions do not name it and search as the job did."""
    assert job.search is not None  # the worker notes it before anything else
    search = checkpoint.metrics.get("search")
    return job.search | ({"search": search} if search else {})


def _not_found(name: str) -> ModelNotFound:
    where = "GET /v1/fine_tuning/jobs/{id}/checkpoints lists a job's" if ":ckpt-step-" in name else LISTED
    return ModelNotFound(f"The model '{name}' does not exist; {where}.")
