"""The body of POST /v1/fine_tuning/jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from iro_server.api.closed_model import ClosedModel
from iro_server.api.reinforcement import Reinforcement
from iro_server.api.unsupported import Unsupported


class Method(ClosedModel):
    type: Literal["reinforcement"]
    reinforcement: Reinforcement
    supervised: Annotated[Any, Unsupported()] = None
    dpo: Annotated[Any, Unsupported()] = None

    @field_validator("type", mode="before")
    @classmethod
    def _is_reinforcement(cls, type: object) -> object:
        if type in ("supervised", "dpo"):
            raise ValueError(f"models are aligned to a grader here, by the method 'reinforcement', not '{type}'")
        return type


class Wandb(ClosedModel):
    project: str
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class Integration(ClosedModel):
    """Accepted, so that a request need not change; a run's TensorBoard files are written in any case."""

    type: Literal["wandb"]
    wandb: Wandb


Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]
MAX_TAGS = 16
Tags = Annotated[Metadata, Field(max_length=MAX_TAGS)]


class JobRequest(ClosedModel):
    model: str
    training_file: str
    validation_file: str | None = None
    method: Method
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: Tags | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    hyperparameters: None = None

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _in_the_method(cls, hyperparameters: object) -> None:
        if hyperparameters:
            raise ValueError("give them as method.reinforcement.hyperparameters")
