"""Searches whose rows end at strings: a token stands for a string here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from iro_server.decoding.base import SearchParams, SearchResult
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
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


def test_a_search_to_the_end_draws_little_past_the_strings() -> None:
    engine = ToyEngine()
    finals = run(SearchParams(num_successors=8), 0, engine).finals
    assert all(ends(final.tokens) for final in finals)
    assert engine.sampled < sum(len(final.tokens) for final in finals) + 8 * 8
    assert finals[0].value == max(final.value for final in finals)
