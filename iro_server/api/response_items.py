"""The items of a response's input and output, its tools, and what they are as a chat's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, TypeAdapter, field_validator

from iro_server import JsonObject, JsonValue
from iro_server.api.closed_model import ClosedModel
from iro_server.api.messages import FunctionDefinition, Tool
from iro_server.api.unsupported import Unsupported
from iro_server.engines.text_parts import text_of
from iro_server.engines.tool_calls import ToolCall
from iro_server.store.tables import new_id

Status = Literal["in_progress", "completed", "incomplete"]

ADVICE = {
    "item_reference": "send the item itself, or the id of its response as previous_response_id",
    "reasoning": "leave them out, since the models served here do not reason apart",
}
SUPPORTED = "send messages, function_call and function_call_output"


class MessageItem(ClosedModel):
    """A message; one of an earlier response's output may be sent back as it came."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[str, BeforeValidator(text_of)]
    id: str | None = None
    status: Status | None = None
    phase: str | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _is_item(cls, type: object) -> object:
        if type != "message":
            shown = repr(str(type)[:50])
            advice = ADVICE.get(type) if isinstance(type, str) else None
            raise ValueError(f"items of the type {shown} are not supported; {advice or SUPPORTED}")
        return type

    @property
    def message(self) -> JsonObject:
        return {"role": self.role, "content": self.content}

    def stored(self) -> JsonObject:
        """As ``input_items`` shows it."""
        part: JsonObject = {"type": "input_text", "text": self.content}
        if self.role == "assistant":
            part = {"type": "output_text", "text": self.content, "annotations": []}
        id = self.id or new_id("msg_")
        return {"id": id, "type": "message", "role": self.role, "status": "completed", "content": [part]}


class CallItem(ClosedModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None
    namespace: Annotated[object, Unsupported()] = None
    caller: Annotated[object, Unsupported()] = None

    @property
    def message(self) -> JsonObject:
        call = {"id": self.call_id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def stored(self) -> JsonObject:
        return call_item(ToolCall(self.name, self.arguments), self.call_id, self.id)


class ResultItem(ClosedModel):
    """What a call of a function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[str, BeforeValidator(text_of)]
    id: str | None = None
    status: Status | None = None
    name: str | None = None
    namespace: Annotated[object, Unsupported()] = None
    caller: Annotated[object, Unsupported()] = None

    @property
    def message(self) -> JsonObject:
        return {"role": "tool", "tool_call_id": self.call_id, "content": self.output}

    def stored(self) -> JsonObject:
        item = {"id": self.id or new_id("fco_"), "type": "function_call_output", "call_id": self.call_id}
        return item | {"output": self.output, "status": "completed"}


def _kind(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"dict[{kind}]" if kind in ("function_call", "function_call_output") else "dict[message]"


InputItem = Annotated[
    Annotated[MessageItem, Tag("dict[message]")]
    | Annotated[CallItem, Tag("dict[function_call]")]
    | Annotated[ResultItem, Tag("dict[function_call_output]")],
    Discriminator(_kind),
]
"""The tags are steps that ``errors.MEMBER`` leaves out of a field's path."""
ITEM: TypeAdapter[MessageItem | CallItem | ResultItem] = TypeAdapter(InputItem)


def messages_of(items: Iterable[MessageItem | CallItem | ResultItem]) -> list[JsonObject]:
    """Chat messages: calls in a row are one message's, and so is the text before them."""
    messages: list[JsonObject] = []
    for item in items:
        message = item.message
        last = messages[-1] if messages else {}
        if "tool_calls" in message and last.get("role") == "assistant":
            last["tool_calls"] = [*last.get("tool_calls", []), *message["tool_calls"]]
        else:
            messages.append(message)
    return messages


def call_item(
    call: ToolCall, call_id: str | None = None, id: str | None = None, status: Status = "completed"
) -> JsonObject:
    ids = {"id": id or new_id("fc_"), "call_id": call_id or new_id("call_")}
    fields = {"type": "function_call", "status": status, "name": call.name, "arguments": call.arguments}
    return ids | fields


class FunctionTool(ClosedModel):
    type: Literal["function"]
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    allowed_callers: Annotated[object, Unsupported(["direct"])] = None
    defer_loading: Annotated[object, Unsupported(False)] = None
    output_schema: JsonObject | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _is_function(cls, type: object) -> object:
        if type != "function":
            raise ValueError(f"this server has tools of the type 'function', not {str(type)[:50]!r}")
        return type

    def shown(self) -> JsonObject:
        names = ("type", "name", "description", "parameters", "strict")
        return {name: getattr(self, name) for name in names}

    @property
    def chat_tool(self) -> Tool:
        names = ("name", "description", "parameters", "strict")
        function = FunctionDefinition.model_construct(**{name: getattr(self, name) for name in names})
        return Tool.model_construct(type="function", function=function)


def chat_choice(choice: JsonValue) -> JsonValue:
    """A response's ``tool_choice`` as a chat request's."""
    match choice:
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "mode": str(mode), "tools": list(tools)}:
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*map(chat_choice, tools)]}}
    return choice
