"""The two blocks of options in ``method.reinforcement`` of a job: see docs/hyperparameters.md."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from iro_server import JsonObject
from iro_server.alignment.definition import AlignmentOptions
from iro_server.alignment.partial import with_fields_of
from iro_server.api.closed_model import ClosedModel

RENAMED = {
    "n_epochs": "epochs",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "eval_interval": "eval_interval",
    "eval_samples": "eval_samples",
}
"""Options that are OpenAI's hyperparameters, by OpenAI's name."""

Auto = Literal["auto"]


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


REINFORCEMENT_FIELDS = ("grader", "response_format")
"""Fields of ``method.reinforcement`` beside the blocks of options."""

OPTIONS_BY_BLOCK: dict[str, Collection[str]] = {
    "iro": IroOptions.model_fields,
    "hyperparameters": Hyperparameters.model_fields,
}
"""Names of the options that each block takes."""
