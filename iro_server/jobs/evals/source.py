"""Where a run's items come from, and how an item becomes the messages that are sent to the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from iro_server import JsonObject, JsonValue
from iro_server.graders.base import Sample, TextTooLong
from iro_server.graders.json_schema import Schema, check_texts
from iro_server.graders.messages import Message, render_messages
from iro_server.graders.templates import MissingField

ITEMS_AT_ONCE = 500  # that one call of the schema's check takes
Row = tuple[JsonObject, JsonObject | None]  # an item and, where it has one, its sample


class BadItem(ValueError):
    """An item that cannot be used; the message says which and why."""


class NoSample(Sample):
    """Of a row that brings none: graders that read fields of a sample fail."""

    def as_dict(self) -> JsonObject:
        return {}


def rows_of_lines(lines: Iterable[bytes]) -> Iterator[Row]:
    """The rows of a JSONL file: ``{"item": …, "sample": …}``, or a training row, which is the item itself. BadItem."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BadItem(f"line {number}: {error}") from error
        yield row_of(value, f"line {number}")


def row_of(value: JsonValue, place: str) -> Row:
    if not isinstance(value, dict):
        raise BadItem(f"{place}: not an object")
    item, sample = (value["item"], value.get("sample")) if "item" in value else (value, None)
    if not isinstance(item, dict):
        raise BadItem(f"{place}: item is not an object")
    if sample is not None and not isinstance(sample, dict):
        raise BadItem(f"{place}: sample is not an object")
    if sample is not None and sample.get("output_text") is None and not sample.get("choices"):
        raise BadItem(f"{place}: sample has neither output_text nor choices")
    return item, sample


def completion_row(completion: JsonObject, messages: list[JsonObject], metadata: JsonObject) -> Row:
    """A stored chat completion as an item, its request, and its sample, its first answer."""
    message = completion["choices"][0]["message"]
    sample = {"output_text": message["content"] or "", "choices": completion["choices"]}
    sample |= {"output_tools": message["tool_calls"]} if message.get("tool_calls") else {}
    return {"input": messages, "model": completion["model"], "metadata": metadata}, sample


def check_items(schema: Schema, items: list[JsonObject]) -> None:
    """BadItem with the place, from 0, of the first item that does not fit the eval's ``item_schema``."""
    for start in range(0, len(items), ITEMS_AT_ONCE):
        texts = {f"$[{i}]": json.dumps(item) for i, item in enumerate(items[start : start + ITEMS_AT_ONCE])}
        try:
            check_texts(schema, texts)
        except ValueError as error:
            after = f", counted from item {start}" if start else ""
            raise BadItem(f"an item does not fit item_schema{after}: {error}") from error


def messages_for(input_messages: JsonObject, item: JsonObject, limit: int) -> list[JsonObject]:
    """The messages of a template, filled in, or those that an item brings. BadItem where they cannot be made.

    ``limit``: bytes that they may take.
    """
    if input_messages["type"] == "item_reference":
        return _referenced(input_messages["item_reference"], item)
    scope = {"item": item, "sample": {"output_json": None}}
    try:
        return [*render_messages([Message.model_validate(m) for m in input_messages["template"]], scope, limit)]
    except (MissingField, TextTooLong) as error:
        raise BadItem(str(error)) from error


def _referenced(path: str, item: JsonObject) -> list[JsonObject]:
    value: JsonValue = item
    for step in path.removeprefix("item.").split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise BadItem(f"{path} is not a list of messages")
    return [{name: part for name, part in message.items() if name != "type"} for message in value]  # type: ignore[union-attr]


def stored_sample(sample: JsonObject | None) -> Sample:
    """A sample that a row brings, in OpenAI's shape; NoSample where it brings none."""
    fields = sample or {}
    choices = fields.get("choices") or None
    text = fields.get("output_text")
    if text is None and choices is None:
        return NoSample("")
    if text is None and choices:
        text = (choices[0].get("message") or {}).get("content")
    return Sample(str(text or ""), fields.get("output_json"), fields.get("output_tools"), choices)
