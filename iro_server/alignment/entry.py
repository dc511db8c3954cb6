"""Batch jobs as the server and the command line find and call them: the entry points of the group ``iro.jobs``."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, TypeVar

from pydantic import BaseModel

from iro_server import JsonObject

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from iro_server.alignment.definition import Alignment
    from iro_server.engines.base import ModelInfo
    from iro_server.graders.base import Grader

GROUP = "iro.jobs"


class JobEvent(TypedDict):
    """What a job reports while it runs."""

    type: str
    level: str
    message: str
    data: JsonObject


AnyConfig = TypeVar("AnyConfig", bound=BaseModel)
AlignmentConfig = TypeVar("AlignmentConfig", bound="Alignment")


class BatchJob(Protocol[AnyConfig]):
    """A job that ``iro run`` runs."""

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def presets(self) -> Mapping[str, JsonObject]: ...
    @property
    def Config(self) -> type[AnyConfig]: ...

    def execute(
        self,
        config: Mapping[str, object] | AnyConfig,
        out: Path,
        *,
        seeds: int = 1,
        on_event: Callable[[JobEvent], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> JsonObject:
        """Run to the end, or continue the unfinished run in ``out``; returns what its result.json holds.

        Raises ValueError for a bad config.
        """
        ...


class DescribedModel(Protocol):
    """A frozen model without its weights."""

    @property
    def info(self) -> ModelInfo: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


class AlignmentJob(Protocol[AlignmentConfig]):
    """The job that aligns a model. Its result has ``best_checkpoint`` (a value bundle),
    ``improved`` (whether the 95 % interval of the held-out gain is above 0), ``over_optimization`` (departures, see
    ``ServedDefaults``), ``max_tokens`` and ``trained_tokens``.

    Events are ``{"type", "level", "message", "data"}``; the type is "message", "metrics", "checkpoint", "progress",
    "stage" or "defaults".
    """

    @property
    def Config(self) -> type[AlignmentConfig]: ...

    def validate(self, config: AlignmentConfig, model: DescribedModel, grader: Grader) -> list[str]:
        """Warnings about the config's files. Raises ValueError where ``execute`` could not succeed."""
        ...

    def execute(
        self,
        config: AlignmentConfig,
        out: Path,
        *,
        on_event: Callable[[JobEvent], None],
        should_stop: Callable[[], bool],
    ) -> JsonObject: ...

    def export(self, folder: Path) -> Dataset:
        """The graded completions of the run in ``folder``."""
        ...

    def discard(self, folder: Path) -> None:
        """Remove from ``folder`` what only a continued run would read."""
        ...


def batch_jobs() -> importlib.metadata.EntryPoints:
    """All installed batch jobs."""
    return importlib.metadata.entry_points(group=GROUP)


class JobUnavailable(ValueError):
    """A package that a batch job imports is not installed; the message says what to install."""


def load_batch_job(name: str) -> BatchJob[BaseModel]:
    """The batch job ``name``. ValueError where there is none, JobUnavailable where a package is missing."""
    jobs = batch_jobs()
    if name not in jobs.names:
        raise ValueError(f"no job {name!r}; `iro list` has: {', '.join(sorted(jobs.names))}")
    try:
        job: BatchJob[BaseModel] = jobs[name].load()
    except ModuleNotFoundError as error:
        extras = ",".join(jobs[name].extras)
        requirement = f": pip install 'iro-align[{extras}]'" if extras else ""
        raise JobUnavailable(f"{name} needs {error.name}, which is not installed{requirement}") from error
    return job


def load_alignment_job(name: str | None = None) -> AlignmentJob[Alignment]:
    """The entry point ``align``, or the object that ``name``, as ``module:attribute``, refers to."""
    if name is None:
        job: AlignmentJob[Alignment] = batch_jobs()["align"].load()
        return job
    module, attribute = name.split(":")
    job = getattr(importlib.import_module(module), attribute)
    return job
