"""One prompt, generated as a request asks: a guided search, or independent samples of the frozen model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

from iro_server import JsonObject
from iro_server.api.registry import ServedModel
from iro_server.api.search_telemetry import SearchTelemetry
from iro_server.api.search_trace import OnRound, SearchTrace
from iro_server.api.text import Detokenizer
from iro_server.api.tools import ToolUse
from iro_server.concurrency.tasks import gather_or_cancel
from iro_server.decoding.base import Attribution, Final, Scorer, SearchParams, SearchResult, SearchUsage
from iro_server.decoding.beam import SampledTokens
from iro_server.decoding.search import guided_search
from iro_server.decoding.selection import diversity_first
from iro_server.decoding.stopping import STOP_TOKENS
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.cache import cached_tokens
from iro_server.telemetry import tracing

OnAgreed = Callable[[range, SampledTokens], None]


@dataclass(frozen=True)
class Generation:
    """``n`` choices for one prompt. All is checked: what it holds fits the model.

    ``best_first``: by value, also where the selection rule returns samples. ``traced``: its rounds are reported.
    ``use``: of tools, by each choice. ``attribution``: value functions that are shared among the choices' tokens.
    """

    model: ServedModel
    prompt_ids: list[int]
    params: SearchParams
    scorer: Scorer | None
    steering: Steering | None
    sampling: Sampling
    max_tokens: int
    n: int
    detokenizer: Detokenizer
    item: JsonObject
    use: ToolUse | None = None
    best_first: bool = False
    traced: bool = False
    attribution: Attribution | None = None

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
    sampled: SampledTokens
    finish_reason: str
    beam: int = 0  # its number in the search

    @property
    def kl(self) -> float:
        """Nats from the frozen model along its tokens (0 without steering, NaN where the engine reports none)."""
        return sum(self.sampled.kl, 0.0)


@dataclass
class Generated:
    choices: list[Choice]
    usage: SearchUsage


async def generate(
    request: Generation, first: int = 0, on_agreed: OnAgreed | None = None, on_round: OnRound | None = None
) -> Generated:
    """``n`` choices or, where the grader picks, all that the search ends with.

    ``first``: the number of the first choice. ``on_agreed`` is called, as they grow, with the tokens that choices are
    sure to begin with, and the choices' numbers. ``on_round`` is called with each round of a search.
    """
    numbers = range(first, first + request.n)
    if not request.independent:
        return _ordered(request, await _search(request, request.sampling, numbers, on_agreed, on_round))
    seed = request.sampling.seed
    seeds = [None if seed is None else seed + index for index in range(request.n)]
    samples = await gather_or_cancel(
        _search(request, dataclasses.replace(request.sampling, seed=seed), numbers[index : index + 1], on_agreed)
        for index, seed in enumerate(seeds)
    )
    with tracing.span("detokenise"):
        choices = [_choice(request, sample.finals[0]) for sample in samples]
    return Generated(choices, sum_usage([sample.usage for sample in samples]))


async def _search(
    request: Generation,
    sampling: Sampling,
    numbers: range,
    on_agreed: OnAgreed | None,
    on_round: OnRound | None = None,
) -> SearchResult:
    params = request.params
    if params.rows == 1 and params.chunk_length is None:
        looks_up = request.detokenizer.stops or request.attribution  # whose hidden states are dropped then
        length = 1 if on_agreed else STOP_TOKENS if looks_up else None
        params = params.model_copy(update={"chunk_length": length})
    return await guided_search(
        request.model.engine,
        request.prompt_ids,
        params,
        sampling,
        request.max_tokens,
        request.scorer if params.rows > 1 else None,
        steering=request.steering,
        attribution=request.attribution,
        stops=request.detokenizer if request.detokenizer.stops else None,
        on_agreed=partial(on_agreed, numbers) if on_agreed else None,
        observer=SearchTrace(params.rows, on_round) if on_round else SearchTelemetry(params.rows),
    )


def _ordered(request: Generation, result: SearchResult) -> Generated:
    """The choices of one search, best first."""
    with tracing.span("detokenise"):
        choices = [_choice(request, final) for final in result.finals]
    if request.picked_by_grader:
        return Generated(choices, result.usage)
    if request.params.rule.samples and request.params.rows > 1 and not request.best_first:
        return Generated(choices[: request.n], result.usage)
    best = diversity_first([final.value for final in result.finals], [choice.text for choice in choices], request.n)
    # Beams that all stopped early, and a greedy row, are fewer finals than rows: the best stand for the missing ones.
    return Generated([choices[i] for i in islice(cycle(best), request.n)], result.usage)


def _choice(request: Generation, final: Final) -> Choice:
    text, count = request.detokenizer.final_text(final.tokens)
    finish_reason = "stop" if count < len(final.tokens) else final.finish_reason
    sampled = SampledTokens(
        final.tokens, final.logprobs, final.alternatives, final.log_ratios, final.token_values, final.token_kl
    )
    return Choice(text, sampled[:count], finish_reason, final.number)


def sum_usage(usages: list[SearchUsage]) -> SearchUsage:
    return SearchUsage(
        base_tokens=sum(u.base_tokens for u in usages),
        value_tokens=sum(u.value_tokens for u in usages),
        rounds=sum(u.rounds for u in usages),
        cached_tokens=min(u.cached_tokens for u in usages),  # of one prompt, which some session of these may have read
    )
