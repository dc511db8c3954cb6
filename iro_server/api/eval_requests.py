"""The bodies of /v1/evals and of its runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from iro_server import JsonObject
from iro_server.api.job_request import Metadata
from iro_server.api.reinforcement import ClosedModel
from iro_server.graders.json_schema import Schema
from iro_server.graders.messages import Message

Name = Annotated[str, Field(min_length=1, max_length=512)]
Tags = Annotated[Metadata, Field(max_length=16)]
NOT_STORED = "no {what} are stored here: give the items as a file (file_id) or in the request (file_content)"


class DataSourceConfig(ClosedModel):
    type: Literal["custom"]
    item_schema: Schema
    include_sample_schema: bool = False

    @field_validator("type", mode="before")
    @classmethod
    def _is_custom(cls, type: object) -> object:
        if type in ("logs", "stored_completions"):
            raise ValueError(f"{NOT_STORED.format(what='completions')}, and their schema as type 'custom'")
        return type


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
    """``id`` of type file_id, ``content`` of type file_content."""

    type: Literal["file_id", "file_content"]
    id: str | None = None
    content: Annotated[list[FileItem], Field(min_length=1)] | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _brings_its_items(cls, type: object) -> object:
        if type in ("stored_completions", "responses"):
            raise ValueError(NOT_STORED.format(what="completions" if type == "stored_completions" else type))
        return type

    @model_validator(mode="after")
    def _is_whole(self) -> Source:
        if (self.type == "file_id") != (self.id is not None) or (self.type == "file_content") != bool(self.content):
            raise ValueError("type file_id takes an id, type file_content its content")
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
    """Items of type jsonl bring their samples, where the criteria read any. A model of this server gives those of the
    other types, which both ask its chat route."""

    type: Literal["jsonl", "completions", "responses"]
    source: Source
    model: str | None = None
    input_messages: InputMessages | None = None
    sampling_params: SamplingParams | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> DataSource:
        if self.type == "jsonl" and self.model is not None:
            raise ValueError("type jsonl brings its samples and takes no model; use type completions")
        if self.type != "jsonl" and (self.model is None or self.input_messages is None):
            raise ValueError(f"type {self.type} takes a model and input_messages; use jsonl for stored samples")
        return self


class RunRequest(ClosedModel):
    data_source: DataSource
    name: Name | None = None
    metadata: Tags | None = None
