"""Which completions have the form that a job asks for."""

from __future__ import annotations

from typing import Any

import pytest

from iro_server.graders.response_format import ResponseFormat, parse_response_format


def schema(definition: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": definition}}


REFERRING = {
    "type": "object",
    "properties": {"size": {"$ref": "#/$defs/size"}},
    "required": ["size"],
    "additionalProperties": False,
    "$defs": {"size": {"type": "integer", "minimum": 0}},
}


@pytest.mark.parametrize(
    ("spec", "text", "value"),
    [
        ({"type": "text"}, "anything", None),
        ({"type": "json_object"}, ' {"a": [1]}\n', {"a": [1]}),
        (schema(REFERRING), '{"size": 3}', {"size": 3}),
        (schema({"enum": ["a", 1]}), "1", 1),
        (schema(True), "[]", []),
    ],
)
def test_a_completion_of_the_form_is_parsed(spec: dict, text: str, value: Any) -> None:
    assert parse_response_format(spec).parse(text) == value


@pytest.mark.parametrize(
    ("spec", "text", "message"),
    [
        ({"type": "json_object"}, "[1]", "not a JSON object"),
        ({"type": "json_object"}, 'Sure: {"a": 1}', "Expecting value"),
        ({"type": "json_object"}, '{"a": NaN}', "NaN is not JSON"),
        ({"type": "json_object"}, "", "Expecting value"),
        (schema(REFERRING), '{"size": -1}', r"\$\.size: -1 is less than"),
        (schema(REFERRING), '{"size": 1, "b": 2}', "'b' was unexpected"),
        (schema({}), "[" * 100_000, "recursion"),
        (schema({"$ref": "#"}), "1", "cannot be applied"),
    ],
)
def test_one_without_it_is_told_why(spec: dict, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_response_format(spec).parse(text)


def nested(depth: int) -> dict[str, Any]:
    return {"items": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "type: Field required"),
        ({"type": "yaml"}, "type: Input should be"),
        ({"type": "json_schema"}, "json_schema goes with the type json_schema"),
        ({"type": "text", "json_schema": {"name": "a"}}, "json_schema goes with the type json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "two words"}}, "json_schema.name"),
        (schema({"type": "number of things"}), "json_schema.schema: not a JSON schema"),
        (schema({"pattern": "("}), "not a JSON schema"),
        (schema({"$ref": "https://example.com/schema"}), "leads nowhere"),
        (schema({"$ref": "#/$defs/absent"}), "leads nowhere"),
        (schema({"$ref": "#/title", "title": "a"}), "not a JSON schema"),
        (schema(nested(400)), "nested too deeply"),
    ],
)
def test_a_bad_format_names_its_mistake(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_response_format(spec)


def test_strict_and_description_are_accepted() -> None:
    spec = schema({}) | {}
    spec["json_schema"] |= {"strict": True, "description": "a number"}
    assert isinstance(parse_response_format(spec), ResponseFormat)
