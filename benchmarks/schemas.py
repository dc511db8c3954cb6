"""JSON schemas made at random, of the keywords that structured output is asked for with."""

from __future__ import annotations

import random

from iro_server import JsonObject

WORDS = ("name", "age", "city", "tags", "items", "price", "is_active", "note", "größe", "first name", 'the "id"', "x")
PATTERNS = ("^[A-Z]{2}-[0-9]{3}$", "^(red|green|blue)$", "^[a-z]+@[a-z]+\\.org$", "^\\d{4}$")
FORMATS = ("date", "time", "email", "uuid", "ipv4")


def random_schema(seed: int) -> JsonObject:
    """An object's schema; the same for the same seed. A property may refer to a definition, which may hold itself."""
    rng = random.Random(seed)
    schema = _object(rng, 3)
    if rng.random() < 0.25:
        node = {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}
        definition = {"type": "object", "properties": node, "required": list(node), "additionalProperties": False}
        schema["$defs"] = {"node": definition}
        schema["properties"]["list"] = {"$ref": "#/$defs/node"}
        schema["required"].append("list")
    return schema


def _object(rng: random.Random, depth: int) -> JsonObject:
    names = rng.sample(WORDS, rng.randint(1, 4))
    required = names if rng.random() < 0.7 else rng.sample(names, rng.randint(0, len(names)))
    properties = {name: _value(rng, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _value(rng: random.Random, depth: int) -> JsonObject:
    leaves = [_text, _choice, _number, lambda _: {"type": "boolean"}, lambda _: {"type": ["string", "null"]}]
    if depth <= 0 or rng.random() < 0.5:
        return rng.choice(leaves)(rng)
    kind = rng.choice(("object", "array", "anyOf"))
    if kind == "object":
        return _object(rng, depth)
    if kind == "array":
        return {"type": "array", "items": _value(rng, depth - 1), "minItems": rng.randint(0, 2), "maxItems": 4}
    return {"anyOf": [_object(rng, depth - 1), _choice(rng), {"type": "null"}]}


def _text(rng: random.Random) -> JsonObject:
    limits: list[JsonObject] = [
        {},
        {"maxLength": rng.randint(3, 20)},
        {"minLength": 1, "maxLength": 12},
        {"pattern": rng.choice(PATTERNS)},
        {"format": rng.choice(FORMATS)},
    ]
    return {"type": "string"} | rng.choice(limits)


def _choice(rng: random.Random) -> JsonObject:
    if rng.random() < 0.2:
        return {"const": rng.choice(["yes", 3, None, True])}
    return {"enum": rng.sample(["a", "b", "ça va", "with space", 1, 2.5, None, True, "😀"], rng.randint(1, 5))}


def _number(rng: random.Random) -> JsonObject:
    low = rng.randint(-20, 5)
    return rng.choice(
        [
            {"type": "integer"},
            {"type": "number"},
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 300)},
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        ]
    )
