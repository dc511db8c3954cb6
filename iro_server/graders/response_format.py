"""The form that a job's completions must have, in OpenAI's ``response_format``. One without it is not graded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

from jsonschema import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

MAX_VALUES = 4000  # of a schema: its objects, lists, strings and numbers
MAX_ITEMS = 1000  # of a list in it, such as enum: OpenAI's limit


class JsonSchema(BaseModel):
    """``strict`` is accepted: every completion has to fit the schema anyway."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    strict: bool | None = None
    definition: dict[str, Any] | bool = Field(default={}, alias="schema")

    @field_validator("definition")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any] | bool) -> dict[str, Any] | bool:
        try:
            _check_size(schema, MAX_VALUES)
            _check(schema)
            _check_targets(schema)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        return schema


class ResponseFormat(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    _validator: Validator | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _goes_together(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and only with it")
        return self

    def model_post_init(self, context: object) -> None:
        if self.json_schema is not None:
            schema = self.json_schema.definition
            self._validator = validator_for(schema, Draft202012Validator)(schema, registry=Registry())

    def parse(self, text: str) -> Any:
        """The completion as a grader's ``output_json``; None for plain text. ValueError where it lacks the form."""
        if self.type == "text":
            return None
        try:
            value = json.loads(text, parse_constant=_refuse)
            if self.type == "json_object" and not isinstance(value, dict):
                raise ValueError("not a JSON object")
            error = None if self._validator is None else next(self._validator.iter_errors(value), None)
        except (RecursionError, Unresolvable) as error_of_schema:
            raise ValueError(f"the schema cannot be applied: {error_of_schema}") from error_of_schema
        if error is not None:
            raise ValueError(f"{error.json_path}: {error.message}")
        return value


def parse_response_format(spec: dict[str, Any]) -> ResponseFormat:
    """Raises ValueError, with the field at fault, for the first mistake."""
    try:
        return ResponseFormat.model_validate(spec)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"]))
    raise ValueError(f"{field + ': ' if field else ''}{first['msg'].removeprefix('Value error, ')}")


def _check(schema: Any) -> None:
    try:
        validator_for(schema, Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message}") from error


def _check_size(schema: Any, remaining: int) -> int:
    """The schema's values, itself included. ValueError where there are more than ``remaining``, or a list is too long.

    Checking a schema takes up to 0.2 ms a value, and time quadratic in a list whose items have to differ.
    """
    if isinstance(schema, list) and len(schema) > MAX_ITEMS:
        raise ValueError(f"a list of more than {MAX_ITEMS} items")
    size = 1
    for item in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        size += _check_size(item, remaining - size)
    if size > remaining:
        raise ValueError(f"a schema, or what its references name, has more than {MAX_VALUES} values")
    return size


def _check_targets(schema: Any) -> None:
    """Check what references name within the schema, each target once; nothing is fetched."""
    resolver = Registry().with_resource("", Resource.from_contents(schema, DRAFT202012)).crawl().resolver()
    checked, remaining = {id(schema)}, MAX_VALUES
    for reference in dict.fromkeys(_references(schema)):
        target = _lookup(resolver, reference)
        if id(target) not in checked:
            remaining -= _check_size(target, remaining)
            _check(target)
            checked.add(id(target))


def _lookup(resolver: Any, reference: str) -> Any:
    try:
        return resolver.lookup(reference).contents
    except (Unresolvable, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"$ref {reference[:100]!r} leads nowhere in the schema") from error


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, item in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(item, str):
                yield item
            else:
                yield from _references(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
