"""Searches whose rows end at strings: a token stands for a string here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from iro_server.decoding.base import SearchParams, SearchResult
from iro_server.decoding.search import guided_search
from iro_server.decoding.stopping import StoppingSession
from iro_server.engines.base import Chunk, Sampling
from tests.toy import END, ToyEngine, ToyScorer, next_probs

PROMPT, LENGTH, STOP = [0, 1], 40, [1, 2]


class ToyStops:
    """Ends a row at the tokens ``STOP``."""

    num_context_tokens = 1

    def first_stop(self, context: Sequence[int], tokens: Sequence[int]) -> int | None:
        assert len(context) <= 1
        row = [*context, *tokens]
        ends = [end - len(context) for end in range(2, len(row) + 1) if row[end - 2 : end] == STOP]
        return ends[0] if ends else None


class SingleChunkEngine(ToyEngine):
    info = replace(ToyEngine.info, resumes=False)


def value(tokens: tuple[int, ...]) -> float:
    return tokens.count(0) - 0.3 * len(tokens)


def run(params: SearchParams, seed: int, engine: ToyEngine, **options: float) -> SearchResult:
    sampling = Sampling(seed=seed, stop_ids=(END,) if seed % 2 else (), **options)
    return asyncio.run(guided_search(engine, PROMPT, params, sampling, LENGTH, ToyScorer(value), stops=ToyStops()))


def ends(tokens: list[int]) -> list[int]:
    return [end for end in range(2, len(tokens) + 1) if tokens[end - 2 : end] == STOP]


@pytest.mark.parametrize("engine", [ToyEngine, SingleChunkEngine])
@pytest.mark.parametrize(
    "params",
    [
        SearchParams(num_successors=8),
        SearchParams(num_successors=8, chunk_length=16),
        SearchParams(beam_width=3, num_successors=3, chunk_length=3),
        SearchParams(beam_width=4, num_successors=2, chunk_length=11, selection="smc"),
    ],
)
def test_a_row_ends_where_it_completes_a_string_and_has_its_value_there(
    params: SearchParams, engine: type[ToyEngine]
) -> None:
    for seed in range(6):
        toy = engine()
        penalty = 0.5 if engine is SingleChunkEngine else 0.0  # which it applies to a single chunk alone
        result = run(params, seed, toy, presence_penalty=penalty)
        assert result.usage.base_tokens == toy.sampled >= result.usage.value_tokens
        for final in result.finals:
            assert ends(final.tokens) in ([], [len(final.tokens)])
            assert final.value == pytest.approx(value(tuple(final.tokens)))
            assert (final.finish_reason == "stop") == (
                ends(final.tokens) != [] or final.tokens[-1] in (END,) * (seed % 2)
            )
            prefixes = [PROMPT + final.tokens[:count] for count in range(len(final.tokens))]
            exact = [float(next_probs(part)[token].log()) for part, token in zip(prefixes, final.tokens, strict=True)]
            assert final.logprobs == exact


class WordSession:
    """Rows without an end, as of an endpoint over text: each token asked for is three of the engine's. A single row of
    which more is asked for has as many as a stream may have brought."""

    cached_tokens = 0

    def __init__(self) -> None:
        self.lengths: list[int] = []

    async def extend(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> Chunk:
        self.lengths.append(length)
        rows, tokens = len(parents) * num_successors, 3 * length
        if rows == 1 and more:
            tokens = min(tokens, length + more)
        return Chunk(
            torch.zeros(rows, tokens, dtype=torch.int64),
            torch.zeros(rows, tokens),
            torch.full((rows,), tokens),
            torch.zeros(rows, dtype=torch.bool),
        )

    def close(self) -> None: ...


async def test_parts_are_as_many_tokens_as_were_asked_for_whatever_the_engine_counts() -> None:
    words = WordSession()
    chunk = await StoppingSession(words, ToyStops()).extend([0], 2, 20)
    assert words.lengths == [8, 8, 4] and chunk.lengths_R.tolist() == [60, 60]


@pytest.mark.parametrize(("length", "more", "expected"), [(4, 0, 12), (4, 20, 12), (1, 1, 2)])
async def test_a_part_of_a_single_row_may_bring_tokens_of_those_that_follow(
    length: int, more: int, expected: int
) -> None:
    """Never more than were announced."""
    chunk = await StoppingSession(WordSession(), ToyStops(), part_length=4).extend([0], 1, length, more)
    assert chunk.lengths_R.tolist() == [expected]


def test_a_search_to_the_end_draws_little_past_the_strings() -> None:
    engine = ToyEngine()
    finals = run(SearchParams(num_successors=8), 0, engine).finals
    assert all(ends(final.tokens) for final in finals)
    assert engine.sampled < sum(len(final.tokens) for final in finals) + 8 * 8
    assert finals[0].value == max(final.value for final in finals)


@pytest.mark.parametrize(("engine", "rounds"), [(ToyEngine, 4), (SingleChunkEngine, 1)])
def test_a_penalised_search_is_one_round_where_the_engine_cannot_continue_its_rows(
    engine: type[ToyEngine], rounds: int
) -> None:
    params, sampling = (
        SearchParams(beam_width=2, num_successors=2, chunk_length=3),
        Sampling(seed=0, presence_penalty=0.5),
    )
    result = asyncio.run(guided_search(engine(), PROMPT, params, sampling, 12, ToyScorer(value)))
    assert result.usage.rounds == rounds


class LongStop:
    """Ends a row at ten tokens of one kind, which are more than a part has."""

    num_context_tokens = 9

    def first_stop(self, context: Sequence[int], tokens: Sequence[int]) -> int | None:
        row = [*context, *tokens]
        ends = [end - len(context) for end in range(10, len(row) + 1) if len(set(row[end - 10 : end])) == 1]
        return next((end for end in ends if end > 0), None)


async def test_a_string_may_begin_in_a_part_before_the_last() -> None:
    """Parts of three tokens; the string is complete after ten of them."""
    chunk = await StoppingSession(WordSession(), LongStop(), part_length=1).extend([0], 1, 12)
    assert chunk.lengths_R.tolist() == [10] and chunk.stopped_R.tolist() == [True]


class DiscardingSession(WordSession):
    """Has drawn five more tokens than it returns."""

    async def extend(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> Chunk:
        return replace(await super().extend(parents, num_successors, length, more), discarded_tokens=5)


async def test_tokens_that_the_engine_discarded_are_counted_with_those_past_a_string() -> None:
    """Four parts of three tokens each: two tokens are past the string."""
    chunk = await StoppingSession(DiscardingSession(), LongStop(), part_length=1).extend([0], 1, 12)
    assert chunk.discarded_tokens == 4 * 5 + 2
