"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from jinja2 import TemplateError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from iro_server import JsonObject
from iro_server.api.context import Context, Ctx
from iro_server.api.errors import bad_request
from iro_server.api.generation import Choice, Generation
from iro_server.api.generation_slot import take_slot
from iro_server.api.logprobs import chat_logprobs
from iro_server.api.options import Options, fingerprint, usage_object
from iro_server.api.registry import ServedModel
from iro_server.api.respond import Stream, whole
from iro_server.api.response_schema import response_schema
from iro_server.api.unsupported import Unsupported
from iro_server.decoding.beam import SampledTokens
from iro_server.engines.prompts import chat_prompt_ids, text_of
from iro_server.store.tables import new_id, now

router = APIRouter(tags=["chat"])


class Message(BaseModel):
    """A client may send an answer's message back as it came, with all its fields that are null."""

    model_config = ConfigDict(extra="forbid")

    audio: Annotated[object, Unsupported()] = None
    function_call: Annotated[object, Unsupported()] = None
    tool_calls: Annotated[object, Unsupported([])] = None
    annotations: Annotated[object, Unsupported([])] = None
    refusal: Annotated[object, Unsupported()] = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(text_of)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


class ChatRequest(Options):
    prompt_param = "messages"

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: JsonObject | None = None

    # What changes no answer here: there is one tier, nothing is cached or stored, and the model does not reason apart.
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prediction: JsonObject | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    parallel_tool_calls: bool | None = None

    modalities: Annotated[object, Unsupported(["text"])] = None
    verbosity: Annotated[object, Unsupported("medium")] = None
    tool_choice: Annotated[object, Unsupported("none", "auto")] = None
    function_call: Annotated[object, Unsupported("none", "auto")] = None
    tools: Annotated[object, Unsupported()] = None
    functions: Annotated[object, Unsupported()] = None
    audio: Annotated[object, Unsupported()] = None
    moderation: Annotated[object, Unsupported()] = None
    web_search_options: Annotated[object, Unsupported()] = None

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def num_alternatives(self) -> int:
        return self.top_logprobs or 0


@router.post("/chat/completions")
async def create(body: ChatRequest, request: Request, context: Ctx) -> Any:
    """Generate the assistant's next message."""
    model = await run_in_threadpool(context.model, body.model)
    schema = await response_schema(body.response_format, context, model)
    generation = await run_in_threadpool(_generation, body, context, model, schema)
    slot = take_slot(request, context, [generation])
    frame = {"id": new_id("chatcmpl-"), "created": now(), "model": body.model, "system_fingerprint": fingerprint(model)}
    if body.stream:
        chunks = ChatChunks(model.engine.tokenizer, body)
        frame["object"] = "chat.completion.chunk"
        return Stream([generation], chunks, frame, body.include_usage, slot).response()
    (generated,) = await whole(request, [generation], slot)
    choices = [_choice(generation, body, index, choice) for index, choice in enumerate(generated.choices)]
    usage = usage_object([generation], [generated])
    return frame | {"object": "chat.completion", "choices": choices, "usage": usage}


def _generation(body: ChatRequest, context: Context, model: ServedModel, schema: str | None) -> Generation:
    try:
        prompt_ids = chat_prompt_ids(model.engine.tokenizer, [message.plain() for message in body.messages])
    except TemplateError as error:
        raise bad_request(f"The model's chat template refuses these messages: {error}", "messages") from error
    max_tokens = body.max_completion_tokens or body.max_tokens
    default = context.settings.default_max_tokens
    return body.generation(context, model, prompt_ids, max_tokens, default, schema=schema)


def _choice(generation: Generation, body: ChatRequest, index: int, choice: Choice) -> JsonObject:
    return {
        "index": index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "finish_reason": choice.finish_reason,
        "logprobs": _logprobs(generation.model.engine.tokenizer, body, choice.sampled),
    }


class ChatChunks:
    """The ``choices`` of a chat stream's chunks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, body: ChatRequest) -> None:
        self.tokenizer, self.body = tokenizer, body

    def head(self, index: int) -> list[JsonObject]:
        return [_delta(index, {"role": "assistant", "content": ""})]

    def text(self, index: int, text: str, sampled: SampledTokens) -> list[JsonObject]:
        return [_delta(index, {"content": text}) | {"logprobs": _logprobs(self.tokenizer, self.body, sampled)}]

    def tail(self, index: int, choice: Choice, rest: SampledTokens) -> list[JsonObject]:
        logprobs = _logprobs(self.tokenizer, self.body, rest) if rest.tokens else None
        return [_delta(index, {}) | {"finish_reason": choice.finish_reason, "logprobs": logprobs}]


def _delta(index: int, delta: JsonObject) -> JsonObject:
    return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}


def _logprobs(tokenizer: PreTrainedTokenizerBase, body: ChatRequest, sampled: SampledTokens) -> JsonObject | None:
    return chat_logprobs(tokenizer, sampled, body.num_alternatives) if body.logprobs else None
