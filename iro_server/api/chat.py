"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, ValidationInfo, field_validator
from transformers import PreTrainedTokenizerBase

from iro_server import JsonObject
from iro_server.api import stored_completions
from iro_server.api.composition import served_model
from iro_server.api.context import Context, Ctx
from iro_server.api.errors import bad_request
from iro_server.api.generation import Choice, Generated, Generation
from iro_server.api.generation_slot import take_slot
from iro_server.api.job_request import Tags
from iro_server.api.logprobs import chat_logprobs
from iro_server.api.messages import Message, Tool
from iro_server.api.options import Options, fingerprint, usage_object
from iro_server.api.prompt_length import check_length
from iro_server.api.quotas import check_completions
from iro_server.api.registry import ServedModel
from iro_server.api.respond import Stream, whole
from iro_server.api.response_schema import check_schema, requested_schema, response_schema
from iro_server.api.stored_size import json_bytes
from iro_server.api.tool_results import check_results
from iro_server.api.tools import CallStream, ToolUse, tool_use
from iro_server.api.unsupported import Unsupported
from iro_server.decoding.beam import SampledTokens
from iro_server.engines.prompts import chat_prompt_ids
from iro_server.store.tables import new_id, now

router = APIRouter(tags=["chat"])


class ChatRequest(Options):
    prompt_param = "messages"

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: JsonObject | None = None

    store: bool | None = None
    metadata: Tags | None = None  # of a stored completion

    # What changes no answer here: there is one tier, nothing is cached, and the model does not reason apart.
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: JsonObject | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prediction: JsonObject | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None

    modalities: Annotated[object, Unsupported(["text"])] = None
    verbosity: Annotated[object, Unsupported("medium")] = None
    function_call: Annotated[object, Unsupported("none", "auto")] = None
    functions: Annotated[object, Unsupported()] = None
    audio: Annotated[object, Unsupported()] = None
    moderation: Annotated[object, Unsupported()] = None
    web_search_options: Annotated[object, Unsupported()] = None

    @field_validator("top_logprobs")
    @classmethod
    def _comes_with_logprobs(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count and not info.data.get("logprobs"):
            raise ValueError("it takes logprobs: true")
        return count

    @field_validator("max_completion_tokens")
    @classmethod
    def _is_the_only_limit(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if limit and info.data.get("max_tokens"):
            raise ValueError("it cannot be set beside max_tokens, its older name")
        return limit

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def num_alternatives(self) -> int:
        return self.top_logprobs or 0

    @property
    def alternatives_param(self) -> str:
        return "top_logprobs"


@router.post("/chat/completions")
async def create(body: ChatRequest, request: Request, context: Ctx) -> Any:
    """Generate the assistant's next message."""
    check_results(body.messages)
    model = await run_in_threadpool(served_model, body.model, body.search, context)
    use = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls, model)
    schema = await answer_schema(body.response_format, use, context, model)
    generation = await run_in_threadpool(_generation, body, context, model, schema, use)
    messages = [message.model_dump(exclude_none=True) for message in body.messages] if body.store else []
    if body.store:
        await run_in_threadpool(check_completions, context, json_bytes(messages))
    slot = take_slot(request, context, [generation])
    frame: JsonObject = {
        "id": new_id("chatcmpl-"),
        "created": now(),
        "model": body.model,
        "system_fingerprint": fingerprint(model),
    }

    def whole_answer(generated: list[Generated]) -> JsonObject:
        choices = [_choice(generation, body, use, index, choice) for index, choice in enumerate(generated[0].choices)]
        usage = usage_object([generation], generated)
        return frame | {"object": "chat.completion", "choices": choices, "usage": usage}

    def keep(answer: JsonObject) -> None:
        stored_completions.store(answer, messages, body.metadata or {}, context)

    if body.stream:
        chunks = ChatChunks(model.engine.tokenizer, body, use)
        frame["object"] = "chat.completion.chunk"
        when_generated = (lambda generated: keep(whole_answer(generated))) if body.store else None
        return Stream([generation], chunks, frame, body.include_usage, slot, when_generated).response()
    answer = whole_answer(await whole(request, [generation], slot))
    if body.store:
        await run_in_threadpool(keep, answer)
    return answer


async def answer_schema(
    format: JsonObject | None, use: ToolUse | None, context: Context, model: ServedModel
) -> str | None:
    """What the answer is held to: a call, where one is required, or the response format; without tools and a format of
    the request's own, that of the model's job."""
    if use is None:
        return await requested_schema(format, context, model)
    if not use.required:
        return await response_schema(format, context, model)
    schema = json.dumps(use.tools.call_schema(use.required))
    await check_schema(schema, context, model, "tools")
    return schema


def _generation(
    body: ChatRequest, context: Context, model: ServedModel, schema: str | None, use: ToolUse | None
) -> Generation:
    token_ids = prompt_ids(body.messages, model, use)
    max_tokens = body.max_completion_tokens or body.max_tokens
    default = context.settings.default_max_tokens
    return body.generation(context, model, token_ids, max_tokens, default, schema=schema, use=use)


def prompt_ids(messages: Sequence[Message], model: ServedModel, use: ToolUse | None) -> list[int]:
    """Token ids of a conversation, as ``chat_prompt_ids``. 400 where the chat template cannot render it, and where its
    texts are much too long."""
    plain = [message.plain() for message in messages]
    tools, begun = (use.tools.functions, use.begun) if use else ((), "")
    texts = [message["content"] for message in plain]
    texts += [json.dumps(part) for part in (*tools, *(message.get("tool_calls", []) for message in plain)) if part]
    check_length(texts, model.engine.tokenizer, model.engine.info.max_length, "messages")
    try:
        return chat_prompt_ids(model.engine.tokenizer, plain, tools, begun)
    except Exception as error:  # chat templates raise errors of many kinds for messages they cannot render
        raise bad_request(f"The model's chat template cannot render these messages: {error}", "messages") from error


def _choice(generation: Generation, body: ChatRequest, use: ToolUse | None, index: int, choice: Choice) -> JsonObject:
    content, calls = use.read(choice.text) if use else (choice.text, [])
    message: JsonObject = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if use and calls:
        message["tool_calls"] = use.call_objects(index, calls)
    return {
        "index": index,
        "message": message,
        "finish_reason": use.finish_reason(choice.finish_reason, calls) if use else choice.finish_reason,
        "logprobs": _logprobs(generation.model.engine.tokenizer, body, choice.sampled),
    }


class ChatChunks:
    """The ``choices`` of a chat stream's chunks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, body: ChatRequest, use: ToolUse | None) -> None:
        self.tokenizer, self.body, self.use = tokenizer, body, use
        self.texts: defaultdict[int, str] = defaultdict(str)  # of each choice, so far
        self.unsent: defaultdict[int, SampledTokens] = defaultdict(lambda: SampledTokens())
        self.calls: dict[int, CallStream] = {}

    def head(self, index: int) -> list[JsonObject]:
        return [_delta(index, {"role": "assistant", "content": ""})]

    def text(self, index: int, text: str, sampled: SampledTokens) -> list[JsonObject]:
        if self.use is None:
            return [self._part(index, {"content": text}, sampled)]
        stream = self.calls.setdefault(index, CallStream(self.use, index))
        self.texts[index] += text
        return self._parts(index, stream.text(self.texts[index]), sampled)

    def tail(self, index: int, choice: Choice, rest: SampledTokens) -> list[JsonObject]:
        reason, parts = choice.finish_reason, []
        if self.use is not None:
            stream = self.calls.setdefault(index, CallStream(self.use, index))
            parts = self._parts(index, stream.end(choice.text), rest)
            rest = self.unsent.pop(index, SampledTokens())
            reason = self.use.finish_reason(reason, self.use.read(choice.text)[1])
        return [*parts, self._part(index, {}, rest) | {"finish_reason": reason}]

    def _parts(self, index: int, deltas: list[JsonObject], sampled: SampledTokens) -> list[JsonObject]:
        """Chunks of the deltas; the first brings the log-probabilities, which wait for one."""
        sampled = self.unsent.pop(index, SampledTokens()) + sampled
        if not deltas:
            self.unsent[index] = sampled
            return []
        first, *others = deltas
        return [self._part(index, first, sampled), *(_delta(index, delta) for delta in others)]

    def _part(self, index: int, delta: JsonObject, sampled: SampledTokens) -> JsonObject:
        logprobs = _logprobs(self.tokenizer, self.body, sampled) if sampled.tokens else None
        return _delta(index, delta) | {"logprobs": logprobs}


def _delta(index: int, delta: JsonObject) -> JsonObject:
    return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}


def _logprobs(tokenizer: PreTrainedTokenizerBase, body: ChatRequest, sampled: SampledTokens) -> JsonObject | None:
    return chat_logprobs(tokenizer, sampled, body.num_alternatives) if body.logprobs else None
