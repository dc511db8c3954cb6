"""The bodies of /v1/evals and of its runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from iro_server import JsonObject
from iro_server.api.closed_model import ClosedModel
from iro_server.api.job_request import Tags
from iro_server.graders.json_schema import Schema
from iro_server.graders.messages import Message

Name = Annotated[str, Field(min_length=1, max_length=512)]
UnixTime = Annotated[int, Field(ge=0, lt=2**62)]
NO_RESPONSES = "stored responses are no source of items: give them as a file (file_id) or in the request (file_content)"
COMPLETION_ITEM: JsonObject = {
    "type": "object",
    "properties": {
        "input": {"type": "array", "items": {"type": "object"}},
        "model": {"type": "string"},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["input", "model", "metadata"],
}
"""The item of a stored chat completion: ``input`` is its messages."""


class DataSourceConfig(ClosedModel):
    """``metadata``: what the stored completions of the eval's runs have, of the types for these."""

    type: Literal["custom", "logs", "stored_completions"]
    item_schema: Schema | None = None
    include_sample_schema: bool = False
    metadata: Tags | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> DataSourceConfig:
        if (self.type == "custom") != (self.item_schema is not None):
            raise ValueError("type custom takes an item_schema, and the other types have their own")
        if self.type == "custom" and self.metadata is not None:
            raise ValueError("metadata selects stored completions; type custom has none")
        return self

    def stored(self) -> JsonObject:
        if self.type == "custom":
            return self.model_dump(mode="json", exclude={"metadata"})
        fixed = {"item_schema": COMPLETION_ITEM, "include_sample_schema": True, "metadata": self.metadata or {}}
        return {"type": self.type} | fixed


class EvalRequest(ClosedModel):
    data_source_config: DataSourceConfig
    testing_criteria: Annotated[list[JsonObject], Field(min_length=1, max_length=64)]
    name: Name | None = None
    metadata: Tags | None = None


class EvalUpdate(ClosedModel):
    name: Name | None = None
    metadata: Tags | None = None


class FileItem(ClosedModel):
    item: JsonObject
    sample: JsonObject | None = None


class Source(ClosedModel):
    """``id`` of type file_id, ``content`` of type file_content, and the others of type stored_completions, where they
    select the completions; times are Unix."""

    type: Literal["file_id", "file_content", "stored_completions"]
    id: str | None = None
    content: Annotated[list[FileItem], Field(min_length=1)] | None = None
    metadata: Tags | None = None
    model: str | None = None
    created_after: UnixTime | None = None
    created_before: UnixTime | None = None
    limit: Annotated[int, Field(ge=1)] | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _brings_its_items(cls, type: object) -> object:
        if type == "responses":
            raise ValueError(NO_RESPONSES)
        return type

    @model_validator(mode="after")
    def _is_whole(self) -> Source:
        if (self.type == "file_id") != (self.id is not None) or (self.type == "file_content") != bool(self.content):
            raise ValueError("type file_id takes an id, type file_content its content")
        selecting = (self.metadata, self.model, self.created_after, self.created_before, self.limit)
        if self.type != "stored_completions" and any(part is not None for part in selecting):
            raise ValueError("metadata, model, created_after, created_before and limit go with stored_completions")
        return self


class InputMessages(ClosedModel):
    """``template`` of that type, filled in from the item; ``item_reference`` where the item brings its messages."""

    type: Literal["template", "item_reference"]
    template: Annotated[list[Message], Field(min_length=1, max_length=256)] | None = None
    item_reference: Annotated[str, Field(pattern=r"^item\.[\w-]+(\.[\w-]+)*$")] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> InputMessages:
        present = {name for name in ("template", "item_reference") if getattr(self, name) is not None}
        if present != {self.type}:
            raise ValueError(f"type {self.type} takes the field {self.type} and not the other")
        return self


class SamplingParams(ClosedModel):
    """OpenAI's, of both kinds of sampled runs; each goes to the chat route, which says what it takes of it.

    ``search``, an extension: overrides the model's search, as in a chat request.
    """

    max_completion_tokens: int | None = None
    max_completions_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    reasoning_effort: str | None = None
    response_format: JsonObject | None = None
    text: JsonObject | None = None
    tools: Annotated[list[JsonObject], Field(max_length=128)] | None = None
    search: JsonObject | None = None

    def as_request(self) -> JsonObject:
        """As fields of a chat completion request, without the seed."""
        fields = self.model_dump(exclude_none=True, exclude={"seed", "text", "tools", "max_completions_tokens"})
        if self.max_completions_tokens is not None:
            fields.setdefault("max_completion_tokens", self.max_completions_tokens)
        if self.text is not None and (format := self.text.get("format")) is not None:
            fields["response_format"] = chat_format(format)
        if self.tools:
            fields["tools"] = [*map(chat_tool, self.tools)]
        return fields


def chat_tool(tool: JsonObject) -> JsonObject:
    """A response's tool as a chat request's, which is left as it is."""
    if tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def chat_format(format: JsonObject) -> JsonObject:
    """The ``text.format`` of a response as a chat request's ``response_format``."""
    if format.get("type") != "json_schema":
        return format
    return {"type": "json_schema", "json_schema": {name: value for name, value in format.items() if name != "type"}}


class DataSource(ClosedModel):
    """Items of type jsonl bring their samples, where the criteria read any, and so do stored completions without a
    model. A model of this server gives those of the other types, which both ask its chat route."""

    type: Literal["jsonl", "completions", "responses"]
    source: Source
    model: str | None = None
    input_messages: InputMessages | None = None
    sampling_params: SamplingParams | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> DataSource:
        if self.type == "jsonl" and self.model is not None:
            raise ValueError("type jsonl brings its samples and takes no model; use type completions")
        if self.source.type == "stored_completions":
            return self._of_completions()
        if self.type != "jsonl" and (self.model is None or self.input_messages is None):
            raise ValueError(f"type {self.type} takes a model and input_messages; use jsonl for stored samples")
        return self

    def _of_completions(self) -> DataSource:
        if self.type != "completions":
            raise ValueError("a source of stored_completions goes with type completions")
        if self.model is None and (self.input_messages is not None or self.sampling_params is not None):
            raise ValueError("without a model the stored answers are graded: no input_messages, no sampling_params")
        if self.model is not None and self.input_messages is None:
            self.input_messages = InputMessages(type="item_reference", item_reference="item.input")
        return self


class RunRequest(ClosedModel):
    data_source: DataSource
    name: Name | None = None
    metadata: Tags | None = None
