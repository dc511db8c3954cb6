"""The body of POST /v1/fine_tuning/jobs, and the alignment job's config made from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from iro_server.api.errors import bad_request
from iro_server.decoding.base import Selection

Positive = Annotated[int, Field(ge=1)]
Betas = Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]
Auto = Literal["auto"]
BEAM_WIDTH, NUM_SUCCESSORS = 2, 8  # the alignment job's own defaults
MOST_SUCCESSORS = 256


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Hyperparameters(_Closed):
    """OpenAI's. ``compute_multiplier`` scales K; the value fit is in closed form and has no use for the rest."""

    batch_size: Positive | Auto | None = None
    compute_multiplier: Annotated[float, Field(gt=0, le=64)] | Auto | None = None
    eval_interval: Positive | Auto | None = None
    eval_samples: Positive | Auto | None = None
    learning_rate_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Auto | None = None
    n_epochs: Positive | Auto | None = None
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None


class IroOptions(_Closed):
    """Our extension block. What is left out is the alignment job's own default."""

    iterations: Annotated[int, Field(ge=1, le=16)] | None = None
    betas: Betas | Auto | None = None
    rollouts_per_prompt: Annotated[int, Field(ge=2, le=256)] | None = None
    prompts_per_iteration: Annotated[int, Field(ge=2)] | None = None
    validation_prompts: Positive | None = None
    beam_width: Annotated[int, Field(ge=1, le=256)] | None = None
    num_successors: Annotated[int, Field(ge=1, le=MOST_SUCCESSORS)] | None = None
    chunk_length: Positive | None = None
    selection: Selection | None = None
    max_tokens: Positive | None = None
    temperature: Annotated[float, Field(gt=0, le=2)] | None = None
    value_model: Literal["linear", "mlp", "lora"] | None = None
    loss: Literal["mse", "bce"] | None = None

    @model_validator(mode="after")
    def _beta_for_each(self) -> IroOptions:
        if isinstance(self.betas, list) and len(self.betas) != (self.iterations or len(self.betas)):
            raise ValueError(f"{self.iterations} iterations need as many betas, not {len(self.betas)}")
        return self


class Reinforcement(_Closed):
    grader: dict[str, Any]
    hyperparameters: Hyperparameters = Hyperparameters()
    iro: IroOptions = IroOptions()

    def options(self) -> dict[str, Any]:
        """The config fields this method sets."""
        options = self.iro.model_dump(exclude_none=True)
        if isinstance(self.iro.betas, list):
            options["iterations"] = len(self.iro.betas)
        multiplier = self.hyperparameters.compute_multiplier
        if isinstance(multiplier, float | int):
            options["num_successors"] = max(1, round(options.get("num_successors", NUM_SUCCESSORS) * multiplier))
        return options

    def check_rows(self, most: int) -> None:
        """400 where the job's search, which is its model's too, takes more than ``most`` rows a prompt."""
        options = self.options()
        successors = options.get("num_successors", NUM_SUCCESSORS)
        rows = options.get("beam_width", BEAM_WIDTH) * successors
        if rows > most or successors > MOST_SUCCESSORS:
            scaled = isinstance(self.hyperparameters.compute_multiplier, float | int)
            field = "hyperparameters.compute_multiplier" if scaled else "iro.num_successors"
            message = f"beam_width * num_successors is {rows} rows, over {most}"
            if rows <= most:
                message = f"num_successors is {successors}, over {MOST_SUCCESSORS}"
            raise bad_request(message, f"method.reinforcement.{field}", "invalid_value")


class Method(_Closed):
    type: Literal["reinforcement"]
    reinforcement: Reinforcement

    @field_validator("type", mode="before")
    @classmethod
    def _by_reward(cls, type: Any) -> Any:
        if type in ("supervised", "dpo"):
            raise ValueError(f"models are aligned to a grader here, by the method 'reinforcement', not '{type}'")
        return type


class Wandb(_Closed):
    project: str
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class Integration(_Closed):
    """Accepted, so that a request need not change; a run's TensorBoard files are written in any case."""

    type: Literal["wandb"]
    wandb: Wandb


Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class JobRequest(_Closed):
    model: str
    training_file: str
    validation_file: str | None = None
    method: Method
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: Annotated[Metadata, Field(max_length=16)] | None = None
    integrations: Annotated[list[Integration], Field(max_length=5)] | None = None
    hyperparameters: None = None

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _in_the_method(cls, given: Any) -> None:
        if given:
            raise ValueError("give them as method.reinforcement.hyperparameters")
