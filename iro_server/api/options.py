"""What a chat and a text completion request have in common, and how it becomes a generation."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from iro_server import JsonObject
from iro_server.api.context import Context
from iro_server.api.errors import bad_request, invalid
from iro_server.api.generation import Generated, Generation
from iro_server.api.registry import ServedModel
from iro_server.api.text import Detokenizer
from iro_server.api.tools import ToolUse
from iro_server.decoding.base import Attribution, Scorer, SearchParams, repeatable
from iro_server.engines.base import GREEDY_BELOW, SMALLEST_NUCLEUS, Sampling, Steering, cache_salt
from value_heads.stack import ValueStack

RELEASE = version("iro-align")
MAX_BIASES = 1024
ADJUSTING = ("logit_bias", "presence_penalty", "frequency_penalty", "response_format")
Bias = Annotated[float, Field(ge=-100, le=100)]
COMPLETION_TOKENS_DETAILS = {
    "reasoning_tokens": 0,
    "audio_tokens": 0,
    "accepted_prediction_tokens": 0,
    "rejected_prediction_tokens": 0,
}
"""No completion has tokens of these kinds here."""
TOKEN_ID = re.compile(r"\d{1,18}")


def _comes_with_stream(options: object, info: ValidationInfo) -> object:
    if options is not None and not info.data.get("stream"):
        raise ValueError("it takes stream: true")
    return options


OnlyStreamed = AfterValidator(_comes_with_stream)
"""Of a field that has a meaning only where ``stream``, an earlier field, is true."""


class StreamOptions(BaseModel):
    """``include_search``: events of the search's rounds, see ``search_trace.RoundWriter``."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_search: bool = False
    include_obfuscation: bool = False


class Options(BaseModel):
    """``search`` overrides the model's own search parameters; ``item`` is what its grader reads beside the sample where
    ``search.pick`` is "grader"; ``top_k`` 0 keeps all tokens. What has no meaning here is accepted where neutral."""

    model_config = ConfigDict(extra="forbid")
    prompt_param: ClassVar[str]  # the field that holds the prompt

    model: str
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, OnlyStreamed] = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    search: JsonObject | None = None
    item: JsonObject | None = None

    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_is_a_list(cls, stop: object) -> object:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("logit_bias")
    @classmethod
    def _keys_are_token_ids(cls, biases: dict[str, float] | None) -> dict[str, float] | None:
        if wrong := [key for key in biases or {} if not TOKEN_ID.fullmatch(key)]:
            raise ValueError(f"{wrong[0][:20]!r} is no token id")
        return biases

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_logprobs(self) -> bool:
        raise NotImplementedError

    @property
    def num_alternatives(self) -> int:
        """How many of the likeliest tokens are told of beside each one drawn."""
        raise NotImplementedError

    @property
    def alternatives_param(self) -> str:
        """The field that asks for them."""
        raise NotImplementedError

    def generation(
        self,
        context: Context,
        model: ServedModel,
        prompt_ids: list[int],
        max_tokens: int | None,
        default: int,
        index: int = 0,
        prompts: int = 1,
        schema: str | None = None,
        use: ToolUse | None = None,
    ) -> Generation:
        """What to do for prompt ``index`` of ``prompts``, its tokens ``default`` where neither request nor model says.

        400 where it does not fit the model or the limits.
        """
        if self.wants_logprobs and not model.engine.info.logprobs:
            raise bad_request(f"{model.name} is served by an endpoint that gives no log-probabilities.", "logprobs")
        params, scorer, steering = self._search(model)
        n = self.n or 1
        sampling = self._sampling(model, params, prompt_ids, index * n, cache_salt(context.caller.project))
        params = params.drawn_by(sampling)
        self._check_rows(params, n, prompts, context.settings.max_rows)
        max_tokens = self._fit(model, prompt_ids, max_tokens, model.defaults.max_tokens or default)
        if params.rows > 1 and n > params.max_finals:
            message = f"Invalid 'n': this search ends with at most {params.max_finals} completions, not {n}."
            raise bad_request(message, "n")
        sampling = self._adjusted(model, sampling, schema)
        if sampling.alternatives and model.reads_numbers and params.rows > 1:
            why = "its server would report the likeliest tokens in place of what its values read"
            message = f"{model.name}: {why}; ask for 0, or search with 1 row."
            raise bad_request(message, self.alternatives_param)
        generation = Generation(
            model=model,
            prompt_ids=prompt_ids,
            params=params,
            scorer=scorer,
            steering=steering,
            sampling=sampling,
            max_tokens=max_tokens,
            n=n,
            detokenizer=Detokenizer(model.engine.tokenizer, tuple(self.stop or ())),
            item=self.item or {},
            best_first=self._is_greedy,
            traced=self.stream_options is not None and self.stream_options.include_search,
            use=use,
            attribution=None if sampling.alternatives and model.reads_numbers else self._attribution(scorer),
        )
        if generation.base_tokens * prompts > context.settings.max_request_tokens:
            most = context.settings.max_request_tokens
            message = (
                f"{generation.rows} rows of {max_tokens} tokens for each of {prompts} prompts are over {most} tokens"
            )
            raise bad_request(message, "max_tokens", "too_many_tokens")
        return generation

    def _check_rows(self, params: SearchParams, n: int, prompts: int, most: int) -> None:
        formula, param = ("beam_width * num_successors", "search") if params.rows > 1 else ("n", "n")
        rows = prompts * (params.rows if params.rows > 1 else n)
        if rows > most:
            param = self.prompt_param if rows == prompts else param
            raise bad_request(f"{formula} for each prompt makes {rows} rows, over {most}", param)

    def _search(self, model: ServedModel) -> tuple[SearchParams, Scorer | None, Steering | None]:
        try:
            params = model.defaults.search.overridden(self.search or {})
        except ValidationError as error:
            raise invalid(error, "search") from None
        try:
            scorer = model.scorer(params)
        except ValueError as error:
            raise bad_request(str(error), "search.betas") from None
        try:
            steering = model.steering(params)
        except ValueError as error:
            raise bad_request(str(error), "search.strength") from None
        if params.pick == "grader" and model.grader is None:
            raise bad_request(f"{model.name} was aligned to no grader that could pick.", "search.pick")
        return params, scorer, steering

    def _attribution(self, scorer: Scorer | None) -> Attribution | None:
        """The values to be shared among tokens, where log-probabilities are asked for and they are such a sum."""
        return scorer if self.wants_logprobs and isinstance(scorer, ValueStack) and scorer.decomposes else None

    @property
    def _is_greedy(self) -> bool:
        return self.temperature is not None and self.temperature < GREEDY_BELOW

    def _sampling(
        self, model: ServedModel, params: SearchParams, prompt_ids: list[int], offset: int, salt: str
    ) -> Sampling:
        temperature = model.defaults.temperature if self.temperature is None else self.temperature
        sampling = Sampling(
            temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
            top_p=1.0 if self.top_p is None else max(self.top_p, SMALLEST_NUCLEUS),
            top_k=self.top_k or 0,
            seed=None if self.seed is None else self.seed + offset,
            stop_ids=model.engine.info.eos_ids,
            salt=salt,
        )
        if self._is_greedy and model.values is not None and params.rows > 1:
            return repeatable(sampling, model.defaults.temperature, prompt_ids)
        return sampling

    def _adjusted(self, model: ServedModel, sampling: Sampling, schema: str | None) -> Sampling:
        """With what changes the model's logits. 400 where the engine cannot, or for a token that the model lacks."""
        biases = {int(token): bias for token, bias in (self.logit_bias or {}).items()}
        if unknown := [token for token in biases if token >= len(model.engine.tokenizer)]:
            last = len(model.engine.tokenizer) - 1
            message = f"Invalid 'logit_bias': token {unknown[0]}; the model has ids up to {last}."
            raise bad_request(message, "logit_bias")
        adjusted = replace(
            sampling,
            schema=schema,
            logit_bias=tuple(biases.items()),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            alternatives=self.num_alternatives if self.wants_logprobs else 0,
        )
        if adjusted.adjusts and not model.engine.info.adjusts:
            param = next(name for name in ADJUSTING if getattr(self, name, None))
            message = f"{model.name} is served by an endpoint that does not take '{param}'."
            raise bad_request(message, param, "unsupported_parameter")
        return adjusted

    def _fit(self, model: ServedModel, prompt_ids: list[int], max_tokens: int | None, default: int) -> int:
        """The tokens to generate: ``max_tokens`` or, where None, ``default`` or what is left. 400 without the room."""
        longest, used = model.engine.info.max_length, len(prompt_ids)
        if not prompt_ids:
            raise bad_request("The prompt is empty.", self.prompt_param)
        if max_tokens is None:
            max_tokens = max(1, min(default, longest - used))
        if used + max_tokens > longest:
            raise bad_request(
                f"This model's maximum context length is {longest} tokens. However, you requested {used + max_tokens} "
                f"tokens ({used} in the prompt, {max_tokens} in the completion). Please reduce either.",
                self.prompt_param,
                "context_length_exceeded",
            )
        return max_tokens


def fingerprint(model: ServedModel) -> str:
    """OpenAI's ``system_fingerprint``: of the frozen model and of this release, which decide what a seed draws."""
    info = model.engine.info
    return "fp_" + hashlib.sha256(f"{info.model_hash} {info.template_hash} {RELEASE}".encode()).hexdigest()[:10]


def usage_object(generations: list[Generation], generated: list[Generated]) -> JsonObject:
    """OpenAI's counts, and what the search cost: tokens sampled from the base, tokens scored, rounds. ``kl``: nats that
    the choices moved from the frozen model on average, where they were steered."""
    prompt = sum(len(generation.prompt_ids) for generation in generations)
    cached = sum(each.usage.cached_tokens for each in generated)
    completion = sum(len(choice.sampled.tokens) for each in generated for choice in each.choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": COMPLETION_TOKENS_DETAILS,
        "base_tokens": sum(each.usage.base_tokens for each in generated),
        "value_tokens": sum(each.usage.value_tokens for each in generated),
        "rounds": sum(each.usage.rounds for each in generated),
        **_kl(generations, generated),
    }


def _kl(generations: list[Generation], generated: list[Generated]) -> dict[str, float]:
    choices = [choice for each in generated for choice in each.choices]
    if not choices or not any(generation.steering for generation in generations):
        return {}
    kl = sum(choice.kl for choice in choices) / len(choices)
    return {} if math.isnan(kl) else {"kl": round(kl, 4)}
