"""``method.reinforcement`` of a job, and the alignment job's config made from it: see docs/hyperparameters.md."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from iro_server.api.errors import bad_request
from iro_server.decoding.base import Selection
from iro_server.graders.response_format import parse_response_format

BEAM_WIDTH, NUM_SUCCESSORS = 2, 8  # the alignment job's own defaults
MOST_SUCCESSORS = 256
MOST_TOKENS = 8192
IRO = "method.reinforcement.iro"
SEARCH_OF_EFFORT = {"low": {"num_successors": 4}, "high": {"beam_width": 4, "num_successors": 8}}

Auto = Literal["auto"]
Rows = Annotated[int, Field(ge=1, le=256)]
Prompts = Annotated[int, Field(ge=1, le=100_000)]
Betas = Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1, max_length=16)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Hyperparameters(_Closed):
    """OpenAI's. "auto" is the alignment job's own default."""

    batch_size: Prompts | Auto | None = None
    compute_multiplier: Annotated[float, Field(gt=0, le=64)] | Auto | None = None
    eval_interval: Annotated[int, Field(ge=1, le=100_000)] | Auto | None = None
    eval_samples: Annotated[int, Field(ge=1, le=64)] | Auto | None = None
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto | None = None
    n_epochs: Annotated[int, Field(ge=1, le=1000)] | Auto | None = None
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None

    def given(self) -> dict[str, Any]:
        """What is set, "auto" apart."""
        return {name: value for name, value in self if value not in (None, "auto")}


class IroOptions(_Closed):
    """Our extension block. What is left out is the alignment job's own default."""

    iterations: Annotated[int, Field(ge=1, le=16)] | None = None
    betas: Betas | Auto | None = None
    rollouts_per_prompt: Annotated[int, Field(ge=2, le=256)] | None = None
    prompts_per_iteration: Annotated[int, Field(ge=2, le=100_000)] | None = None
    validation_prompts: Annotated[int, Field(ge=1, le=10_000)] | None = None
    beam_width: Rows | None = None
    num_successors: Annotated[int, Field(ge=1, le=MOST_SUCCESSORS)] | None = None
    chunk_length: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    selection: Selection | None = None
    guided_searches: Annotated[int, Field(ge=1, le=64)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | Auto | None = None
    temperature: Annotated[float, Field(gt=0, le=2)] | None = None
    value_model: Literal["linear", "mlp", "lora", "auto"] | None = None
    loss: Literal["mse", "bce"] | None = None
    return_lambda: Annotated[float, Field(ge=0, le=1)] | None = None
    counted_tokens: Annotated[int, Field(ge=0, le=5000)] | None = None
    backbone_layers: Annotated[int, Field(ge=1, le=1000)] | None = None
    early_stop: bool | None = None

    @field_validator("betas")
    @classmethod
    def _one_each(cls, betas: list[float] | str | None, info: ValidationInfo) -> list[float] | str | None:
        iterations = info.data.get("iterations")
        if isinstance(betas, list) and iterations and len(betas) != iterations:
            raise ValueError(f"{iterations} iterations need as many betas, not {len(betas)}")
        return betas

    @model_validator(mode="after")
    def _goes_together(self) -> IroOptions:
        if self.loss == "bce" and self.value_model == "mlp":
            raise ValueError("loss bce goes with linear and lora value functions")
        towards_next = self.return_lambda is not None and self.return_lambda < 1
        if towards_next and (self.value_model in ("lora", "auto") or self.loss == "bce"):
            raise ValueError("return_lambda below 1 goes with value_model linear or mlp, and loss mse")
        return self


class Reinforcement(_Closed):
    grader: dict[str, Any]
    response_format: dict[str, Any] | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    iro: IroOptions = IroOptions()

    def check_format(self) -> None:
        """400 where ``response_format`` is none. A large schema takes a second, for which no event loop should wait."""
        param = "method.reinforcement.response_format"
        try:
            parse_response_format(self.response_format or {"type": "text"})
        except ValueError as error:
            raise bad_request(f"Invalid '{param}': {error}", param, "invalid_value") from error

    def options(self) -> dict[str, Any]:
        """The config fields this method sets: ``iro`` before ``hyperparameters``, and those before the effort's
        search. ``compute_multiplier`` scales K, wherever it comes from."""
        given = self.hyperparameters.given()
        options: dict[str, Any] = dict(SEARCH_OF_EFFORT.get(given.get("reasoning_effort", "default"), {}))
        same = ("eval_interval", "eval_samples", "learning_rate_multiplier")
        options |= {name: given[name] for name in same if name in given}
        if "n_epochs" in given:
            options["epochs"] = given["n_epochs"]
        if "batch_size" in given:  # one prompt of an iteration at least is held out of its fit
            options["prompts_per_iteration"] = max(2, given["batch_size"])
        options |= self.iro.model_dump(exclude_none=True)
        if isinstance(self.iro.betas, list):
            options["iterations"] = len(self.iro.betas)
        if "compute_multiplier" in given:
            successors = options.get("num_successors", NUM_SUCCESSORS) * given["compute_multiplier"]
            options["num_successors"] = max(1, round(successors))
        if self.response_format is not None:
            options["response_format"] = self.response_format
        return options

    def check_rows(self, most: int) -> None:
        """400 where the job's search, which is its model's too, takes more than ``most`` rows a prompt."""
        options = self.options()
        successors = options.get("num_successors", NUM_SUCCESSORS)
        rows = options.get("beam_width", BEAM_WIDTH) * successors
        if rows > most:
            message = f"beam_width * num_successors is {rows} rows, over {most}"
            raise bad_request(message, f"method.reinforcement.{self._sets_rows()}", "invalid_value")
        if successors > MOST_SUCCESSORS:
            message = f"num_successors is {successors}, over {MOST_SUCCESSORS}"
            raise bad_request(message, f"method.reinforcement.{self._sets_rows()}", "invalid_value")

    def _sets_rows(self) -> str:
        """The field to blame for too many rows."""
        if "compute_multiplier" in self.hyperparameters.given():
            return "hyperparameters.compute_multiplier"
        effort = self.hyperparameters.reasoning_effort in SEARCH_OF_EFFORT
        if effort and self.iro.beam_width is None and self.iro.num_successors is None:
            return "hyperparameters.reasoning_effort"
        return "iro.num_successors"
