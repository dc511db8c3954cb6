"""The messages of a chat request, calls of tools and their results among them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from iro_server import JsonObject
from iro_server.api.unsupported import Unsupported
from iro_server.engines.text_parts import text_of


class CalledFunction(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    arguments: str


class MessageToolCall(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["function"] = "function"
    id: str
    function: CalledFunction


class Message(BaseModel):
    """A client may send an answer's message back as it came, with all its fields that are null."""

    model_config = ConfigDict(extra="forbid")

    audio: Annotated[object, Unsupported()] = None
    function_call: Annotated[object, Unsupported()] = None
    annotations: Annotated[object, Unsupported([])] = None
    refusal: Annotated[object, Unsupported()] = None
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(text_of)] = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise PydanticCustomError("missing", "{field} is missing", {"field": "content"})
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a tool's message names its call in tool_call_id")
        return self

    def plain(self) -> JsonObject:
        """As chat templates read it."""
        fields: JsonObject = {"role": self.role, "content": self.content or ""}
        if self.tool_calls:
            fields["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            fields["tool_call_id"] = self.tool_call_id
        return fields


class FunctionDefinition(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: FunctionDefinition

    def plain(self) -> JsonObject:
        """As chat templates read it."""
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})
