"""Where a run's items come from, and how an item becomes the messages that are sent to the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, StrictStr, ValidationError
from pydantic_core import from_json

from iro_server import JsonObject, JsonValue
from iro_server.engines.text_parts import text_of
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


def rows_of_lines(lines: Iterable[bytes], training: bool = False) -> Iterator[Row]:
    """The rows of a JSONL file: ``{"item": …, "sample": …}``, or the item itself, as all are of a ``training`` file.
    BadItem."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise BadItem(f"line {number}: {error}") from error
        yield row_of({"item": value} if training else value, f"line {number}")


def row_of(value: JsonValue, place: str) -> Row:
    if not isinstance(value, dict):
        raise BadItem(f"{place}: not an object")
    item, sample = (value["item"], value.get("sample")) if "item" in value else (value, None)
    if not isinstance(item, dict):
        raise BadItem(f"{place}: item is not an object")
    _check_json({"item": item, "sample": sample}, place)
    return item, None if sample is None else _checked_sample(sample, place)


def _check_json(value: JsonObject, place: str) -> None:
    """BadItem for what an uploaded line may not hold either: numbers that are not finite, and values nested too deep.
    Half a surrogate pair is no mistake here."""
    try:
        from_json(json.dumps(value, allow_nan=False, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise BadItem(f"{place}: {error}") from error


class SampleMessage(BaseModel):
    content: Annotated[str | None, BeforeValidator(text_of)] = None
    tool_calls: list[JsonObject] | None = None


class SampleChoice(BaseModel):
    message: SampleMessage


class SampleFields(BaseModel):
    """What is read of a sample that a row brings, in OpenAI's shape; it may have further fields."""

    output_text: StrictStr | None = None
    output_tools: list[JsonObject] | None = None
    choices: list[SampleChoice] | None = None

    @property
    def has_answer(self) -> bool:
        return self.output_text is not None or bool(self.choices)


def _checked_sample(sample: JsonValue, place: str) -> JsonObject:
    """``sample``, unchanged. BadItem where it cannot be read, or has no answer."""
    if not isinstance(sample, dict):
        raise BadItem(f"{place}: sample is not an object")
    try:
        fields = SampleFields.model_validate(sample)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, ("sample", *first["loc"])))
        message = "Input should be an object" if first["type"] == "model_type" else first["msg"]
        raise BadItem(f"{place}: {field}: {message.removeprefix('Value error, ')}") from error
    if not fields.has_answer:
        raise BadItem(f"{place}: sample has neither output_text nor choices")
    return sample


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
    if sample is None:
        return NoSample("")
    fields = SampleFields.model_validate(sample)
    message = fields.choices[0].message if fields.choices else SampleMessage()
    text = message.content if fields.output_text is None else fields.output_text
    tools = message.tool_calls if fields.output_tools is None else fields.output_tools
    return Sample(text or "", sample.get("output_json"), tools, sample.get("choices") or None)
