"""One prompt, generated as a request asks: a guided search, or independent samples of the frozen model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice

from iro_server.api.errors import bad_request
from iro_server.api.registry import ServedModel
from iro_server.api.text import Detokenizer
from iro_server.concurrency.tasks import gather_or_cancel
from iro_server.decoding.base import Final, Scorer, SearchParams, SearchUsage
from iro_server.decoding.search import guided_search
from iro_server.decoding.selection import diversity_first
from iro_server.engines.base import Sampling
from iro_server.engines.cache import cached_tokens
from iro_server.json_values import JsonObject
from iro_server.telemetry import tracing
from iro_server.telemetry.search import SearchTelemetry

STREAM_TOKENS, STOP_TOKENS = 4, 8  # how often plain sampling looks up, to send text or to look for stop strings
TELEMETRY = SearchTelemetry()
OnAgreed = Callable[[int, list[int]], None]


@dataclass(frozen=True)
class Generation:
    """``n`` choices for one prompt. All is checked: what it holds fits the model.

    ``best_first``: by value, also where the selection rule returns samples.
    """

    model: ServedModel
    prompt_ids: list[int]
    params: SearchParams
    scorer: Scorer | None
    sampling: Sampling
    max_tokens: int
    n: int
    detokenizer: Detokenizer
    item: JsonObject
    best_first: bool = False

    @property
    def rows(self) -> int:
        """Rows that step at once."""
        return self.n if self.independent else self.params.rows

    @property
    def base_tokens(self) -> int:
        """The most tokens it may draw from the frozen model."""
        return self.rows * self.max_tokens

    @property
    def cache_tokens(self) -> int:
        """The most tokens whose keys and values it holds at once."""
        sessions = self.n if self.independent else 1
        return cached_tokens(len(self.prompt_ids), sessions, self.rows, self.max_tokens)

    @property
    def picked_by_grader(self) -> bool:
        return self.params.pick == "grader" and self.params.rows > 1

    @property
    def independent(self) -> bool:
        """Each choice is a sample of its own: nothing is searched for, and temperature 0 would repeat one row."""
        return self.params.rows == 1 and self.sampling.temperature > 0


@dataclass(frozen=True)
class Choice:
    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str


@dataclass
class Generated:
    choices: list[Choice]
    usage: SearchUsage


def check_choices(params: SearchParams, n: int) -> None:
    """400 where a search of these parameters cannot end with ``n`` finals."""
    if params.rows > 1 and n > params.max_finals:
        raise bad_request(f"Invalid 'n': this search ends with at most {params.max_finals} completions, not {n}.", "n")


async def generate(request: Generation, on_agreed: OnAgreed | None = None) -> Generated:
    """``n`` choices or, where the grader picks, all that the search ends with.

    ``on_agreed`` is called with a choice's index and the tokens it is sure to begin with, as they grow.
    """
    if not request.independent:
        return await _search(request, on_agreed)
    samples = await gather_or_cancel(_sample(request, index, on_agreed) for index in range(request.n))
    usages = [sample.usage for sample in samples]
    return Generated([choice for sample in samples for choice in sample.choices], sum_usage(usages))


async def _search(request: Generation, on_agreed: OnAgreed | None) -> Generated:
    def agreed(tokens: list[int]) -> None:
        assert on_agreed is not None
        for index in range(request.n):
            on_agreed(index, tokens)

    finals, usage = await _run(request, request.sampling, agreed if on_agreed else None)
    with tracing.span("detokenise"):
        choices = [_choice(request, final) for final in finals]
    if request.picked_by_grader:
        return Generated(choices, usage)
    if request.params.rule.samples and request.params.rows > 1 and not request.best_first:
        return Generated(choices[: request.n], usage)
    best = diversity_first([final.value for final in finals], [choice.text for choice in choices], request.n)
    # Beams that all stopped early, and a greedy row, are fewer finals than rows: the best stand for the missing ones.
    return Generated([choices[i] for i in islice(cycle(best), request.n)], usage)


async def _sample(request: Generation, index: int, on_agreed: OnAgreed | None) -> Generated:
    sampling = request.sampling
    if sampling.seed is not None:
        sampling = dataclasses.replace(sampling, seed=sampling.seed + index)
    agreed = (lambda tokens: on_agreed(index, tokens)) if on_agreed else None
    finals, usage = await _run(request, sampling, agreed)
    with tracing.span("detokenise"):
        return Generated([_choice(request, finals[0])], usage)


async def _run(
    request: Generation, sampling: Sampling, agreed: Callable[[list[int]], None] | None
) -> tuple[list[Final], SearchUsage]:
    params = request.params
    if params.rows == 1 and params.chunk_length is None:
        length = STREAM_TOKENS if agreed else STOP_TOKENS if request.detokenizer.stops else None
        params = params.model_copy(update={"chunk_length": length})
    result = await guided_search(
        request.model.engine,
        request.prompt_ids,
        params,
        sampling,
        request.max_tokens,
        request.scorer,
        stop_text=request.detokenizer.stopped if request.detokenizer.stops else None,
        on_agreed=agreed,
        observer=TELEMETRY,
    )
    return result.finals, result.usage


def _choice(request: Generation, final: Final) -> Choice:
    text, count = request.detokenizer.final_text(final.tokens)
    finish_reason = "stop" if count < len(final.tokens) else final.finish_reason
    return Choice(text, final.tokens[:count], final.logprobs[:count], finish_reason)


def sum_usage(usages: list[SearchUsage]) -> SearchUsage:
    return SearchUsage(
        base_tokens=sum(u.base_tokens for u in usages),
        value_tokens=sum(u.value_tokens for u in usages),
        rounds=sum(u.rounds for u in usages),
    )
