"""The form that a job's completions must have, in OpenAI's ``response_format``. One without it is not graded."""

from __future__ import annotations

import json
from typing import Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from iro_server import JsonObject, JsonValue
from iro_server.graders.json_schema import Schema, check_schema, check_text


class JsonSchema(BaseModel):
    """``strict`` is accepted: every completion has to fit the schema anyway."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    strict: bool | None = None
    definition: Schema = Field(default={}, alias="schema")

    @field_validator("definition")
    @classmethod
    def _is_a_schema(cls, schema: Schema) -> Schema:
        check_schema(schema)
        return schema


class ResponseFormat(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_nested(cls, fields: object) -> object:
        if not isinstance(fields, dict) or fields.get("type") != "json_schema" or "json_schema" in fields:
            return fields
        if misplaced := sorted({"name", "description", "strict", "schema"} & fields.keys()):
            nested = '{"type": "json_schema", "json_schema": {"name": …, "schema": …}}'
            raise ValueError(f"{', '.join(misplaced)}: these fields go under json_schema: {nested}")
        return fields

    @model_validator(mode="after")
    def _goes_together(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema, and only with it")
        return self

    @property
    def schema_to_fit(self) -> Schema | None:
        """The schema of every answer; None for plain text."""
        if self.json_schema is not None:
            return self.json_schema.definition
        return {"type": "object"} if self.type == "json_object" else None

    def parse(self, text: str) -> JsonValue:
        """The completion as a grader's ``output_json``; None for plain text. ValueError where it lacks the form."""
        if self.type == "text":
            return None
        try:
            value = json.loads(text, parse_constant=_refuse)
        except RecursionError as error:
            raise ValueError("nested too deeply: it exceeds the recursion limit") from error
        if self.type == "json_object" and not isinstance(value, dict):
            raise ValueError("not a JSON object")
        if self.json_schema is not None:
            check_text(self.json_schema.definition, text)
        return value


def parse_response_format(spec: JsonObject) -> ResponseFormat:
    """Raises ValueError, with the field at fault, for the first mistake."""
    try:
        return ResponseFormat.model_validate(spec)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"]))
    raise ValueError(f"{field + ': ' if field else ''}{first['msg'].removeprefix('Value error, ')}")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
