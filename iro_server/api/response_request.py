"""The body of POST /v1/responses, and what of it is a chat request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from iro_server import JsonObject
from iro_server.api.chat import ChatRequest
from iro_server.api.closed_model import ClosedModel
from iro_server.api.errors import APIError, invalid
from iro_server.api.eval_requests import Tags, chat_format
from iro_server.api.options import OnlyStreamed
from iro_server.api.registry import ServedModel
from iro_server.api.response_items import FunctionTool, InputItem, chat_choice, messages_of
from iro_server.api.tool_results import check_call_ids
from iro_server.api.tools import ToolUse, tool_use
from iro_server.api.unsupported import Unsupported

PARAMS = {  # of the chat request, by what the field is called here
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}


def _items(value: object) -> object:
    """A text is one message of the user's."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class Text(ClosedModel):
    format: JsonObject | None = None
    verbosity: object = None


class StreamOptions(ClosedModel):
    include_obfuscation: bool = False


class ResponseRequest(ClosedModel):
    """``search``, ``item``, ``seed`` and ``top_k``, extensions, are those of a chat request."""

    model: str
    input: Annotated[list[InputItem], Field(min_length=1), BeforeValidator(_items)]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: Text | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, OnlyStreamed] = None
    store: bool | None = None
    metadata: Tags | None = None
    search: JsonObject | None = None
    item: JsonObject | None = None
    seed: int | None = None
    top_k: int | None = None

    # What changes no answer here, as in a chat request.
    user: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    reasoning: JsonObject | None = None

    max_tool_calls: Annotated[object, Unsupported()] = None
    include: Annotated[object, Unsupported([])] = None
    top_logprobs: Annotated[object, Unsupported(0)] = None
    truncation: Annotated[object, Unsupported("disabled")] = None
    background: Annotated[object, Unsupported(False)] = None
    background_options: Annotated[object, Unsupported()] = None
    conversation: Annotated[object, Unsupported()] = None
    context_management: Annotated[object, Unsupported([])] = None
    prompt: Annotated[object, Unsupported()] = None
    image: Annotated[object, Unsupported()] = None
    moderation: Annotated[object, Unsupported()] = None
    access_programs: Annotated[object, Unsupported()] = None

    @property
    def response_format(self) -> JsonObject | None:
        """The text's format as a chat request's."""
        return chat_format(self.text.format) if self.text and self.text.format is not None else None

    def tool_use(self, model: ServedModel) -> ToolUse | None:
        """How the answer uses tools; None where it has none to use. 400 for a choice that is none."""
        tools = [tool.chat_tool for tool in self.tools or []]
        return tool_use(tools, chat_choice(self.tool_choice), self.parallel_tool_calls, model)

    def chat(self, before: list[JsonObject]) -> ChatRequest:
        """The chat request that it is, after the messages of earlier responses. 400 where that would be refused."""
        names = ("model", "temperature", "top_p", "search", "item", "seed", "top_k", "stream")
        fields: dict[str, Any] = {name: getattr(self, name) for name in names}
        fields["max_tokens"] = self.max_output_tokens
        instructions = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        messages = [*instructions, *before, *messages_of(self.input)]
        check_call_ids(messages)
        fields["messages"] = messages
        if self.text is not None:
            fields["verbosity"] = self.text.verbosity
        try:
            return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            raise as_sent(invalid(error, "body")) from error


def as_sent(error: APIError) -> APIError:
    """An error of the chat request, at the field of this one that it comes from."""
    field = (error.param or "").split(".")[0]
    if field in PARAMS and error.param is not None:
        param = PARAMS[field] if field == "messages" else PARAMS[field] + error.param.removeprefix(field)
        error.message = error.message.replace(f"'{error.param}'", f"'{param}'")
        error.param = param
    return error
