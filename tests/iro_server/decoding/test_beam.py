"""Beams that point to their parents, and what a search writes out of them."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iro_server.decoding.base import SearchParams, SearchResult
from iro_server.decoding.beam import Beam, SampledTokens
from iro_server.decoding.search import common_prefix, guided_search
from iro_server.decoding.selection import RULES
from iro_server.engines.base import Sampling
from tests.toy import END, VOCABULARY, ToyEngine, ToyScorer, next_probs

PROMPT = [0, 1]
CHUNKS = st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=5)


def grow(chunks: list[list[int]]) -> Beam:
    beam = Beam()
    for tokens in chunks:
        beam = Beam(beam, tokens)
    return beam


def search(rule: str, chunk_length: int, **options) -> SearchResult:
    params = SearchParams(beam_width=3, num_successors=4, chunk_length=chunk_length, selection=rule)
    sampling = Sampling(seed=5, stop_ids=(END,))
    scorer = ToyScorer(lambda tokens: tokens.count(1) - 0.5 * tokens.count(0))
    return asyncio.run(guided_search(ToyEngine(), PROMPT, params, sampling, 14, scorer, **options))


@pytest.mark.parametrize("chunk_length", [1, 3, 14])
@pytest.mark.parametrize("rule", RULES)
def test_a_final_has_the_log_probability_and_state_of_each_of_its_tokens(rule: str, chunk_length: int) -> None:
    """The toy model's are known for every prefix: a part of another beam's path would differ."""
    finals = search(rule, chunk_length, keep_hidden=(0,)).finals
    for final in finals:
        prefixes = [PROMPT + final.tokens[:count] for count in range(len(final.tokens))]
        exact = [float(next_probs(prefix)[token].log()) for prefix, token in zip(prefixes, final.tokens, strict=True)]
        assert final.logprobs == exact
        one_hot = torch.nn.functional.one_hot(torch.tensor(final.tokens), VOCABULARY).float()
        assert torch.equal(final.hidden[0], one_hot)


@pytest.mark.parametrize("rule", RULES)
def test_agreed_tokens_grow_to_what_all_finals_begin_with(rule: str) -> None:
    agreed: list[SampledTokens] = []
    result = search(rule, 2, on_agreed=agreed.append)
    assert len(agreed) == result.usage.rounds
    assert all(longer[: len(shorter.tokens)] == shorter for shorter, longer in pairwise(agreed))
    assert agreed[-1].tokens == common_prefix([final.tokens for final in result.finals])
    best = result.finals[0]
    assert agreed[-1].logprobs == best.logprobs[: len(agreed[-1].tokens)]


@given(CHUNKS, st.integers(0, 25))
def test_tokens_are_those_of_all_chunks(chunks: list[list[int]], start: int) -> None:
    tokens = [token for chunk in chunks for token in chunk]
    assert grow(chunks).length == len(tokens)
    assert grow(chunks).tokens_from(start) == tokens[start:]


@given(CHUNKS, CHUNKS, st.integers(1, 3))
def test_beams_are_equal_where_their_tokens_are(chunks: list[list[int]], more: list[list[int]], size: int) -> None:
    tokens, other = ([token for chunk in part for token in chunk] for part in (chunks, more))
    recut = [tokens[start : start + size] for start in range(0, len(tokens), size)]
    assert grow(chunks) == grow(recut) and hash(grow(chunks)) == hash(grow(recut))
    assert (grow(chunks) == grow(more)) == (tokens == other)
