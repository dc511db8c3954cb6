"""JSON schemas that users send: whether one is a schema, and whether a value fits it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from iro_server import JsonObject
from iro_server.concurrency.worker_processes import WorkerKilled, in_worker_process

MAX_VALUES = 4000  # of a schema: its objects, lists, strings and numbers
MAX_ITEMS = 1000  # of a list in it, such as enum: OpenAI's limit

Schema = JsonObject | bool


def check_schema(schema: Schema) -> None:
    """ValueError where it is no schema, is too large, or has a reference to what is not in it; nothing is fetched."""
    try:
        _check_size(schema, MAX_VALUES)
        _in_worker(_check_schema, json.dumps(schema))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def check_text(schema: Schema, text: str) -> None:
    """ValueError with the place and the reason where ``text``, which is JSON, does not fit ``schema``, or where the
    schema takes too long or too much memory: one can need time exponential in its size."""
    check_texts(schema, {"$": text})


def check_texts(schema: Schema, texts: Mapping[str, str]) -> None:
    """As ``check_text``, of all ``texts``, by place, within the limits of one."""
    _in_worker(_check_texts, json.dumps(schema), dict(texts))


def _in_worker(check: Callable[..., None], *args: object) -> None:
    try:
        in_worker_process(check, *args)
    except (TimeoutError, MemoryError, WorkerKilled) as error:
        raise ValueError(f"the schema cannot be applied: it {error}") from error


def _check_schema(schema_json: str) -> None:
    schema = json.loads(schema_json)
    _check_form(schema)
    _check_targets(schema)


def _check_texts(schema_json: str, texts: Mapping[str, str]) -> None:
    for place, text in texts.items():
        try:
            error = next(_validator(schema_json).iter_errors(json.loads(text)), None)
        except (RecursionError, Unresolvable) as failure:
            raise ValueError(f"the schema cannot be applied: {failure}") from failure
        if error is not None:
            raise ValueError(f"{place}{error.json_path.removeprefix('$')}: {error.message}")


@lru_cache(maxsize=16)
def _validator(schema_json: str) -> Validator:
    schema = json.loads(schema_json)
    return validator_for(schema, Draft202012Validator)(schema, registry=Registry())


def _check_form(schema: object) -> None:
    try:
        validator_for(schema, Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"not a JSON schema: {error.message}") from error


def _check_size(schema: object, remaining: int) -> int:
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


def _check_targets(schema: object) -> None:
    """Check what references name within the schema, each target once."""
    resolver = Registry().with_resource("", Resource.from_contents(schema, DRAFT202012)).crawl().resolver()
    checked, remaining = {id(schema)}, MAX_VALUES
    for reference in dict.fromkeys(_references(schema)):
        target = _lookup(resolver, reference)
        if id(target) not in checked:
            remaining -= _check_size(target, remaining)
            _check_form(target)
            checked.add(id(target))


def _lookup(resolver: Any, reference: str) -> Any:
    try:
        return resolver.lookup(reference).contents
    except (Unresolvable, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"$ref {reference[:100]!r} leads nowhere in the schema") from error


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, item in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(item, str):
                yield item
            else:
                yield from _references(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)
