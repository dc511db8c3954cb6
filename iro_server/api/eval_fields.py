"""The fields of its items that an eval's run reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iro_server import JsonObject, JsonValue
from iro_server.api.errors import bad_request
from iro_server.engines.quoted_tokens import strings
from iro_server.graders.json_schema import Schema
from iro_server.graders.templates import item_fields
from iro_server.jobs.evals.criteria import criterion_names


def check_fields(
    input_messages: JsonObject | None, criteria: Sequence[JsonObject], items: Sequence[JsonObject]
) -> None:
    """400 for a field that no item has, which the messages of a request (``input_messages`` as the run has them) or a
    criterion's template reads: each item would end in an error."""
    present = set().union(*items)
    if input_messages:
        _check(_fields_of_messages(input_messages) - present, "the messages read", "data_source.input_messages")
    for name, criterion in zip(criterion_names(criteria), criteria, strict=True):
        _check(_fields_of(_templates(criterion)) - present, f"the criterion {name!r} reads", "data_source.source")


def check_schema_has_fields(schema: Schema, criteria: Sequence[JsonObject]) -> None:
    """400 for a criterion's template that reads a field of which ``schema`` says that no item has it."""
    if not isinstance(schema, dict) or schema.get("additionalProperties") is not False or "patternProperties" in schema:
        return
    fields = set(schema.get("properties", {}))
    for number, criterion in enumerate(criteria):
        if absent := _fields_of(_templates(criterion)) - fields:
            param = f"testing_criteria.{number}"
            only = f"its properties are {', '.join(sorted(fields))}" if fields else "it has no properties"
            message = f"Invalid '{param}': it reads item.{min(absent)}, which item_schema does not allow: {only}"
            raise bad_request(message, param, "invalid_grader")


def _templates(spec: JsonValue) -> JsonValue:
    """A grader without its python code, and without that of the graders within it."""
    if isinstance(spec, list):
        return [_templates(part) for part in spec]
    if not isinstance(spec, dict):
        return spec
    return {} if spec.get("type") == "python" else {name: _templates(part) for name, part in spec.items()}


def _check(absent: set[str], reader: str, param: str) -> None:
    if absent:
        message = f"Invalid '{param}': {reader} item.{min(absent)}, a field that no item of this run has"
        raise bad_request(message, param, "invalid_item")


def _fields_of_messages(input_messages: JsonObject) -> set[str]:
    if reference := input_messages.get("item_reference"):
        return {str(reference).split(".")[1]}
    return _fields_of(input_messages.get("template"))


def _fields_of(value: Any) -> set[str]:
    return set().union(*map(item_fields, strings(value)))
