"""What graders may reach from where they run: models to ask, and the isolation of python code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo

from iro_server.graders.endpoint_limits import EndpointLimits, TokenPrice

VARIABLE = "IRO_GRADERS"
JUDGE_TOKENS = 50_000_000  # of a job's judges, where keys are required and the setting is not given
JOB_PATIENCE = 600.0  # seconds that a job waits for a grader service that does not answer


class PythonLimits(BaseModel):
    """What one sandboxed python grader process may use. ``timeout`` is the longest a grader may ask for, in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_bytes: int = Field(2 * 2**30, ge=64 * 2**20)
    processes: int = Field(32, ge=1)  # and threads, of one sandbox
    disk_bytes: int = Field(64 * 2**20, ge=2**20)
    output_bytes: int = Field(2**20, ge=2**10)  # of one answer
    timeout: float = Field(120.0, gt=0)


class GraderService(BaseModel):
    """Where python graders run apart from this process (``iro graders``), and the key it asks for. ``patience``: how
    long a grading waits for a service that does not answer, in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    key: str = Field(repr=False)
    patience: float = Field(30.0, ge=0)


class GraderEnvironment(BaseModel):
    """``base_url`` and ``api_key``: the server whose chat models score_model and label_model may name.

    ``endpoints``: other OpenAI-compatible base URLs that a grader may name, each with its key ("" for none); with
    ``any_endpoint`` it may name any. ``reward_models``: sequence classifiers by name; ``embedding_model``: what cosine
    similarity embeds with. ``python``: "sandbox" runs python graders isolated or not at all, "unsafe" runs them as
    plain processes, "off" refuses them; "own", of a user's own code, isolates them where the host can. With
    ``grader_service`` they run there, as it is set up. ``caller``: the project whose samples are graded, where that is
    not ``project``, the grader's owner. ``max_judge_tokens``: of all models that the graders of one job ask; None: no
    limit. ``limits``: of endpoints, by base URL, for each process; ``prices``: of models, by name. ``answer_seconds``:
    that the server at ``base_url`` may take for a judge's answer, waiting for its turn included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str | None = None
    api_key: str = Field("", repr=False)
    project: str = "default"
    caller: str | None = None
    endpoints: dict[str, str] = Field(default_factory=dict, repr=False)
    any_endpoint: bool = False
    reward_models: dict[str, Path] = Field(default_factory=dict)
    embedding_model: Path | None = None
    max_text_bytes: int = 100_000  # of a text to be graded, its template filled in
    python: Literal["sandbox", "unsafe", "off", "own"] = "sandbox"
    python_limits: PythonLimits = PythonLimits()
    grader_service: GraderService | None = None
    max_judge_tokens: int | None = None
    limits: dict[str, EndpointLimits] = Field(default_factory=dict)
    prices: dict[str, TokenPrice] = Field(default_factory=dict)
    answer_seconds: float = 120.0

    def of_job(self, project: str) -> GraderEnvironment:
        """Those of the process that runs a job of ``project``: it may wait longer than a request for what is away."""
        service = self.grader_service and self.grader_service.model_copy(update={"patience": JOB_PATIENCE})
        job = self.model_copy(update={"project": project, "grader_service": service})
        if job.max_judge_tokens is None and not job.any_endpoint:
            return job.model_copy(update={"max_judge_tokens": JUDGE_TOKENS})
        return job

    @classmethod
    def of_this_process(cls) -> GraderEnvironment:
        """As the server that started this process said in ``$IRO_GRADERS``; without one, graders are the user's own."""
        stored = os.environ.get(VARIABLE)
        return cls.model_validate_json(stored) if stored else cls(any_endpoint=True, python="own")

    @classmethod
    def of_validation(cls, info: ValidationInfo) -> GraderEnvironment:
        """Those that the grader being parsed is to run in."""
        assert isinstance(info.context, GraderEnvironment)
        return info.context


class CurrentGraderEnvironment(GraderEnvironment):
    """A server's, of which each job and each request takes a copy: ``any_endpoint`` there is what holds at the time."""

    _any_endpoint: Callable[[], bool] = PrivateAttr()

    def __init__(self, any_endpoint: Callable[[], bool], **fields: Any) -> None:
        super().__init__(**fields)
        self._any_endpoint = any_endpoint

    def model_copy(  # type: ignore[override]
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> GraderEnvironment:
        fields = {name: getattr(self, name) for name in GraderEnvironment.model_fields}
        return GraderEnvironment(**fields | {"any_endpoint": self._any_endpoint()}).model_copy(update=update, deep=deep)
