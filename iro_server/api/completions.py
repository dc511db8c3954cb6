"""POST /v1/completions: texts continued as they stand."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from iro_server import JsonObject
from iro_server.api.composition import served_model
from iro_server.api.context import Context, Ctx
from iro_server.api.errors import bad_request
from iro_server.api.generation import Choice, Generation
from iro_server.api.generation_slot import take_slot
from iro_server.api.logprobs import text_logprobs
from iro_server.api.options import Options, fingerprint, usage_object
from iro_server.api.prompt_length import check_length
from iro_server.api.registry import ServedModel
from iro_server.api.respond import Stream, whole
from iro_server.api.response_schema import requested_schema
from iro_server.api.text import Detokenizer, GrowingText
from iro_server.api.unsupported import Unsupported
from iro_server.decoding.beam import SampledTokens
from iro_server.engines.prompts import text_prompt_ids
from iro_server.store.tables import new_id, now

router = APIRouter(tags=["completions"])
DEFAULT_MAX_TOKENS = 16  # OpenAI's
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(Options):
    """``prompt``: a text, a text's token ids, or several of either."""

    prompt_param = "prompt"

    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    response_format: JsonObject | None = None  # as of a chat completion; OpenAI's API has none here, vLLM's does
    echo: Annotated[object, Unsupported(False)] = None
    best_of: Annotated[object, Unsupported(1)] = None
    suffix: Annotated[object, Unsupported("")] = None

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def num_alternatives(self) -> int:
        return self.logprobs or 0

    @property
    def alternatives_param(self) -> str:
        return "logprobs"

    def prompts(self) -> list[str | list[int]]:
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return list(self.prompt) if several else [self.prompt]  # type: ignore[arg-type,list-item]


@router.post("/completions")
async def create(body: CompletionRequest, request: Request, context: Ctx) -> Any:
    """Continue each prompt ``n`` times, under the response format asked for or that of the model's job."""
    model = await run_in_threadpool(served_model, body.model, body.search, context)
    schema = await requested_schema(body.response_format, context, model)
    generations = await run_in_threadpool(_generations, body, context, model, schema)
    slot = take_slot(request, context, generations)
    frame = {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": now(),
        "model": body.model,
        "system_fingerprint": fingerprint(generations[0].model),
    }
    chunks = TextChunks(context.models.engine.tokenizer, body)
    if body.stream:
        return Stream(generations, chunks, frame, body.include_usage, slot).response()
    generated = await whole(request, generations, slot)
    numbered = enumerate(choice for each in generated for choice in each.choices)
    choices = [chunks.choice(index, choice.text, choice.sampled, choice.finish_reason) for index, choice in numbered]
    return frame | {"choices": choices, "usage": usage_object(generations, generated)}


def _generations(body: CompletionRequest, context: Context, model: ServedModel, schema: str | None) -> list[Generation]:
    engine = model.engine
    prompts = [_token_ids(engine.tokenizer, prompt, engine.info.max_length) for prompt in body.prompts()]
    return [
        body.generation(context, model, ids, body.max_tokens, DEFAULT_MAX_TOKENS, index, len(prompts), schema)
        for index, ids in enumerate(prompts)
    ]


def _token_ids(tokenizer: PreTrainedTokenizerBase, prompt: str | list[int], max_length: int) -> list[int]:
    if isinstance(prompt, str):
        check_length([prompt], tokenizer, max_length, "prompt")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # JSON may spell half a surrogate pair, which no tokenizer takes
            message = f"Invalid 'prompt': it is no Unicode at character {error.start}: {error.reason}"
            raise bad_request(message, "prompt") from None
        return text_prompt_ids(tokenizer, prompt)
    if max(prompt) >= len(tokenizer):
        raise bad_request(f"Invalid 'prompt': the model has token ids up to {len(tokenizer) - 1}.", "prompt")
    return prompt


class TextChunks:
    """The ``choices`` of a text completion, streamed or not."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, body: CompletionRequest) -> None:
        self.tokenizer, self.body = tokenizer, body
        self.tokens: defaultdict[int, list[int]] = defaultdict(list)  # of each choice, so far
        self.texts: defaultdict[int, GrowingText] = defaultdict(partial(GrowingText, Detokenizer(tokenizer)))

    def head(self, index: int) -> None:
        return None

    def text(self, index: int, text: str, sampled: SampledTokens) -> list[JsonObject]:
        return [self.choice(index, text, sampled)]

    def tail(self, index: int, choice: Choice, rest: SampledTokens) -> list[JsonObject]:
        return [self.choice(index, "", rest, choice.finish_reason)]

    def choice(self, index: int, text: str, sampled: SampledTokens, reason: str | None = None) -> JsonObject:
        """A choice, or a part of it, whose tokens are ``sampled``; ``reason``: of the whole, in its last part."""
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": self._logprobs(index, sampled)}

    def _logprobs(self, index: int, sampled: SampledTokens) -> JsonObject | None:
        if self.body.logprobs is None or not sampled.tokens:
            return None
        self.tokens[index] += sampled.tokens
        offsets = self.texts[index].offsets(self.tokens[index])[-len(sampled.tokens) :]
        return text_logprobs(self.tokenizer, sampled, self.body.logprobs, offsets)
