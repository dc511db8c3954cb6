"""Which completions have the form that a job asks for."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest

from iro_server.graders import json_schema
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


def chained(count: int) -> dict[str, Any]:
    """A list of lists of lists, and a reference to each of them."""
    schema: dict[str, Any] = {}
    for i in range(count):
        schema = {"items": schema, "not": {"$ref": "#" + "/items" * i}}
    return schema


LARGE = {
    "200 references to the root": {"allOf": [{"$ref": "#"}] * 200},
    "200 references to a large definition": {
        "allOf": [{"$ref": "#/$defs/a"}] * 200,
        "$defs": {"a": {"properties": {f"p{i}": True for i in range(1000)}}},
    },
    "references to all levels": chained(60),
    "references to all levels of a large schema": {"items": chained(40), "$defs": {f"a{i}": {} for i in range(2000)}},
    "mutual recursion": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "200 anchors": {
        "allOf": [{"$ref": f"#a{i}"} for i in range(200)],
        "$defs": {f"a{i}": {"$anchor": f"a{i}"} for i in range(200)},
    },
    "100,000 properties": {"properties": {f"p{i}": {} for i in range(10**5)}},
    "100,000 choices": {"enum": list(range(10**5))},
    "900 choices that differ": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "enum": [{"a": i} for i in range(900)],
    },
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_schema_is_accepted_or_refused_quickly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "in_worker_process", lambda check, *args: check(*args))
    started = time.thread_time()  # on a busy machine too
    with contextlib.suppress(ValueError):
        parse_response_format(schema(LARGE[name]))
    assert time.thread_time() - started < 20  # at most 2 s on an idle machine


@pytest.mark.parametrize("count", [1001, 10**5])
def test_what_is_too_large_is_told_so(count: int) -> None:
    with pytest.raises(ValueError, match="more than 1000 items"):
        parse_response_format(schema({"enum": list(range(count))}))
    with pytest.raises(ValueError, match="more than 4000 values"):
        parse_response_format(schema({"properties": {f"p{i}": {"minimum": 1} for i in range(2 * count)}}))


def test_recursion_is_no_mistake() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
    assert parse_response_format(schema(tree)).parse('{"left": {"right": {}}}') == {"left": {"right": {}}}
    with pytest.raises(ValueError, match="not of type 'object'"):
        parse_response_format(schema(tree)).parse('{"left": {"right": 1}}')


def doubling(depth: int) -> dict[str, Any]:
    """A schema of a few values that is applied 2^depth times."""
    levels = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(depth)}
    return {"$ref": "#/$defs/a0", "$defs": levels | {f"a{depth}": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("definition", "text"),
    [
        (doubling(60), "1"),
        pytest.param({"pattern": "^(a+)+$"}, json.dumps("a" * 60 + "!"), marks=pytest.mark.slow(12)),
    ],
)
def test_a_schema_that_needs_exponential_time_is_given_up(definition: dict[str, Any], text: str) -> None:
    form = parse_response_format(schema(definition))
    with pytest.raises(ValueError, match="cannot be applied: it took more than"):
        form.parse(text)
    assert parse_response_format(schema({"type": "integer"})).parse("1") == 1
