"""A request's ``response_format`` as the schema that its answer is held to."""

from __future__ import annotations

import json
import logging

from iro_server import JsonObject
from iro_server.api.context import Context
from iro_server.api.errors import APIError, bad_request
from iro_server.api.registry import ServedModel
from iro_server.engines.grammars import SchemaRefused, grammars_of
from iro_server.graders.response_format import parse_response_format

log = logging.getLogger("iro.api")
PLAIN = ({"type": "text"}, None)


async def response_schema(spec: JsonObject | None, context: Context, model: ServedModel) -> str | None:
    """The schema, as JSON; None for plain text. 400 for a format that is none or that the engine cannot hold to.

    Its threads are shared fairly by projects: a large schema takes a second.
    """
    if spec in PLAIN:
        return None
    return await context.schemas.run(context.caller.project, checked_schema, spec, model)


async def requested_schema(spec: JsonObject | None, context: Context, model: ServedModel) -> str | None:
    """As ``response_schema``; without a format of the request's own, that of the model's job."""
    return await (default_schema(context, model) if spec is None else response_schema(spec, context, model))


async def default_schema(context: Context, model: ServedModel) -> str | None:
    """Of the format that the model's job sampled under; None where its completions could not be held to it."""
    if model.defaults.response_format is None or not model.engine.info.resumes:
        return None
    try:
        return await response_schema(model.defaults.response_format, context, model)
    except APIError as error:
        log.info("%s is not held to its job's response format: %s", model.name, error.message)
        return None


async def check_schema(schema: str, context: Context, model: ServedModel, param: str) -> None:
    """400 naming ``param`` where the engine cannot hold an answer to ``schema``."""
    await context.schemas.run(context.caller.project, _check, schema, model, param)


def checked_schema(spec: JsonObject, model: ServedModel) -> str | None:
    """As ``response_schema``, in this thread."""
    try:
        schema = parse_response_format(spec).schema_to_fit
    except ValueError as error:
        raise _refused("response_format", error) from error
    if schema is None:
        return None
    text = json.dumps(schema)
    _check(text, model, "response_format")
    return text


def _check(schema: str, model: ServedModel, param: str) -> None:
    engine = model.engine
    if not engine.info.adjusts:
        message = f"{model.name} is served by an endpoint whose answers cannot be held to a form."
        raise bad_request(message, param, "unsupported_parameter")
    try:
        grammars_of(engine.tokenizer, engine.info.eos_ids).start(schema)
    except SchemaRefused as error:
        raise _refused(param, error) from error


def _refused(param: str, error: ValueError) -> APIError:
    return bad_request(f"Invalid '{param}': {error}", param)
