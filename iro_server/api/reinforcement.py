"""``method.reinforcement`` of a job, and the alignment job's config made from it: see docs/hyperparameters.md."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from iro_server import JsonObject
from iro_server.alignment.definition import DEFAULT_OPTIONS, MAX_SUCCESSORS, AlignmentOptions
from iro_server.alignment.partial import with_fields_of
from iro_server.api.errors import bad_request
from iro_server.graders.response_format import parse_response_format

SEARCH_OF_EFFORT = {"low": {"num_successors": 4}, "high": {"beam_width": 4, "num_successors": 8}}
RENAMED = {
    "n_epochs": "epochs",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "eval_interval": "eval_interval",
    "eval_samples": "eval_samples",
}
"""Options that are OpenAI's hyperparameters, by OpenAI's name."""

Auto = Literal["auto"]


class ClosedModel(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def set_fields(self) -> JsonObject:
        """Fields that are neither null nor absent, as JSON."""
        return self.model_dump(mode="json", exclude_none=True)


@with_fields_of(AlignmentOptions, RENAMED, auto=True)
class Hyperparameters(ClosedModel):
    """OpenAI's. "auto" is the alignment job's own default."""

    batch_size: Annotated[int, Field(ge=1, le=100_000)] | Auto | None = Field(
        None,
        description="Prompts in each iteration: `iro.prompts_per_iteration`. 1 counts as 2, since at least one prompt "
        "is held out of the fit.",
    )
    compute_multiplier: Annotated[float, Field(gt=0, le=64)] | Auto | None = Field(
        None,
        description="Factor on the search's rows W·K: it multiplies K (`num_successors`), wherever K comes from. W·K "
        "is at most the server's setting `max_rows`.",
    )
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = Field(
        None,
        description="A search: `low` K=4; `medium` and `default` the job's default, W=2 and K=8; `high` W=4, K=8.",
    )

    def set_fields(self) -> JsonObject:
        """Fields that are set, other than to "auto"."""
        return {name: value for name, value in super().set_fields().items() if value != "auto"}


@with_fields_of(
    AlignmentOptions, {name: name for name in AlignmentOptions.model_fields if name not in RENAMED.values()}
)
class IroOptions(ClosedModel):
    """Our extension block. What is left out is the alignment job's own default."""

    @model_validator(mode="after")
    def _agree_with_the_definition(self) -> Self:
        AlignmentOptions.model_validate(self.set_fields())
        return self

    def options(self) -> JsonObject:
        """The options that are set, or follow from those."""
        return AlignmentOptions.model_validate(self.set_fields()).model_dump(mode="json", exclude_unset=True)


class Reinforcement(ClosedModel):
    grader: JsonObject
    response_format: JsonObject | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    iro: IroOptions = IroOptions()

    @classmethod
    def options_by_block(cls) -> dict[str, Collection[str]]:
        """Names of the options that each block of a request takes."""
        return {"iro": IroOptions.model_fields, "hyperparameters": Hyperparameters.model_fields}

    def check_format(self) -> None:
        """400 for an invalid ``response_format``. A large schema takes a second, which would block an event loop."""
        param = "method.reinforcement.response_format"
        try:
            parse_response_format(self.response_format or {"type": "text"})
        except ValueError as error:
            raise bad_request(f"Invalid '{param}': {error}", param, "invalid_value") from error

    def options(self) -> JsonObject:
        """The config fields that this method sets.

        ``iro`` overrides ``hyperparameters``, and those override the search of ``reasoning_effort``.
        ``compute_multiplier`` scales K, wherever it comes from.
        """
        hyperparameters = self.hyperparameters.set_fields()
        options: JsonObject = dict(SEARCH_OF_EFFORT.get(hyperparameters.get("reasoning_effort", "default"), {}))
        options |= {option: hyperparameters[name] for name, option in RENAMED.items() if name in hyperparameters}
        if "batch_size" in hyperparameters:  # at least one prompt of an iteration is held out of its fit
            options["prompts_per_iteration"] = max(2, hyperparameters["batch_size"])
        options |= self.iro.options()
        if "compute_multiplier" in hyperparameters:
            successors = options.get("num_successors", DEFAULT_OPTIONS.num_successors)
            options["num_successors"] = max(1, round(successors * hyperparameters["compute_multiplier"]))
        if self.response_format is not None:
            options["response_format"] = self.response_format
        return options

    def check_rows(self, max_rows: int) -> None:
        """400 where the job's search, which is its model's too, takes more than ``max_rows`` rows a prompt."""
        options = self.options()
        successors = options.get("num_successors", DEFAULT_OPTIONS.num_successors)
        rows = options.get("beam_width", DEFAULT_OPTIONS.beam_width) * successors
        message = None
        if rows > max_rows:
            message = f"beam_width * num_successors is {rows} rows, over {max_rows}"
        elif successors > MAX_SUCCESSORS:
            message = f"num_successors is {successors}, over {MAX_SUCCESSORS}"
        if message is not None:
            raise bad_request(message, f"method.reinforcement.{self._field_of_rows()}", "invalid_value")

    def _field_of_rows(self) -> str:
        """The field to blame for too many rows."""
        if "compute_multiplier" in self.hyperparameters.set_fields():
            return "hyperparameters.compute_multiplier"
        options = self.iro.set_fields()
        if self.hyperparameters.reasoning_effort in SEARCH_OF_EFFORT and not options.keys() & {
            "beam_width",
            "num_successors",
        }:
            return "hyperparameters.reasoning_effort"
        return "iro.num_successors"
