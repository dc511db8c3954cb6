"""Several aligned models in one request: ``search.values`` names each with its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from iro_server import JsonObject
from iro_server.api.context import Context
from iro_server.api.errors import api_error, bad_request, invalid
from iro_server.api.registry import CompositeMismatch, ModelMismatch, ModelNotFound, ModelUnreadable, ServedModel

MAX_MODELS = 8
MAX_WEIGHT = 100.0
FIELD = "values"
Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False)]


class Composition(BaseModel):
    values: Annotated[dict[str, Weight], Field(min_length=1, max_length=MAX_MODELS)]


def served_model(name: str, search: JsonObject | None, context: Context) -> ServedModel:
    """The model that a request names, or the weighted sum of those that its search names.

    An aligned model's own values have weight 1 unless they are named. A frozen model takes the defaults of the first
    model named. Raises what ``context.model`` raises; 400 where the models cannot be mixed.
    """
    model = context.model(name)
    if FIELD not in (search or {}):
        return model
    weights, base = _weights(search or {}), context.models.base
    if base in weights:
        raise bad_request(f"{base} is the frozen model: it has no values to weigh.", f"search.{FIELD}")
    if name != base:
        weights = {name: 1.0} | weights
    parts = {part: model if part == name else _part(part, context) for part in weights}
    first = model if model.values is not None else next(iter(parts.values()))
    try:
        values = context.models.composite([(part, weights[part.name]) for part in parts.values()])
    except CompositeMismatch as error:
        raise bad_request(str(error), f"search.{FIELD}", "model_mismatch") from None
    defaults = first.defaults
    if values is None or values.tilt is None:
        defaults = defaults.model_copy(update={"search": defaults.search.model_copy(update={"strength": 0.0})})
    grader = model.grader or (first.grader if len(parts) == 1 else None)
    owned = all(part.owned_by_caller for part in parts.values())
    return replace(model, values=values, defaults=defaults, grader=grader, owned_by_caller=owned, composed=True)


def _part(name: str, context: Context) -> ServedModel:
    try:
        return context.model(name)
    except (ModelMismatch, ModelNotFound, ModelUnreadable) as error:
        refusal = api_error(error)
        refusal.param = f"search.{FIELD}"
        raise refusal from error


def _weights(search: Mapping[str, object]) -> dict[str, float]:
    try:
        return Composition.model_validate({FIELD: search[FIELD]}).values
    except ValidationError as error:
        raise invalid(error, "search") from None
