"""Cached scores of value functions with a backbone of their own equal reading everything again."""

from __future__ import annotations

import asyncio
import gc
import threading
from types import SimpleNamespace

import pytest
import torch

from tests.value_heads.lora import VOCABULARY, bundle, full, random_chunk, search
from value_heads import LoraValues
from value_heads.scoring import CACHES, Request, Search, score


async def scores(values: LoraValues, prompts: list[list[int]], ragged: bool = False) -> list[torch.Tensor]:
    """Three rounds of searches that all ask at the same moment; their rows may differ in length from the start."""
    states = [values.start(prompt) for prompt in prompts]
    generators = [torch.Generator().manual_seed(len(prompt)) for prompt in prompts]
    totals = []
    for parents in ([0], [1, 0], [5, 5]):
        chunks = [random_chunk(g, 4 * len(parents), 2 + i, ragged) for i, g in enumerate(generators)]
        requests = (state.score(parents, 4, chunk) for state, chunk in zip(states, chunks, strict=True))
        totals += await asyncio.gather(*requests)
    return totals


PROMPTS = [[1, 2, 3], [4] * 9, [7, 8] * 10]


async def test_cached_scores_equal_full_recomputation(values):
    await search(values, 0, [5, 6, 7])


@pytest.mark.slow(9)
async def test_searches_side_by_side_do_not_mix(values):
    await asyncio.gather(*(search(values, seed, list(range(1, 3 + seed))) for seed in range(4)))


@pytest.mark.parametrize("ragged", [False, True], ids=["of equal length", "of all lengths"])
async def test_scores_are_the_same_whatever_shares_their_forward_pass(exact, ragged):
    forwards = []
    hook = exact.backbone.model.register_forward_hook(lambda *_: forwards.append(1))
    exact.backbone.score_singly = True
    score_singly = await scores(exact, PROMPTS, ragged)
    alone_forwards = len(forwards)
    exact.backbone.score_singly = False
    held = threading.Event()
    concurrent = asyncio.create_task(scores(exact, PROMPTS, ragged))
    exact.backbone.worker.submit(held.wait)  # so that the first round's requests are all there
    await asyncio.sleep(0.05)
    held.set()
    for separate, batched in zip(score_singly, await concurrent, strict=True):
        torch.testing.assert_close(separate, batched, atol=1e-9, rtol=1e-9)
    hook.remove()
    assert alone_forwards == 3 * 3 * 4  # a prompt and three chunks of three searches, by three adapters
    assert len(forwards) - alone_forwards < alone_forwards * 0.7


async def test_rows_of_unequal_length_score_as_read_at_once(values):
    state = values.start([9, 8, 7])
    generator = torch.Generator().manual_seed(3)
    texts = [[9, 8, 7]]
    for parents in ([0], [2, 1], [0, 7]):
        chunk = random_chunk(generator, 4 * len(parents), 5, ragged=True)
        got = await state.score(parents, 4, chunk)
        texts = [texts[parent] for parent in parents for _ in range(4)]
        rows = zip(texts, chunk.tokens_RL.tolist(), chunk.lengths_R.tolist(), strict=True)
        texts = [text + row[:n] for text, row, n in rows]
        torch.testing.assert_close(got, torch.tensor([full(values, text) for text in texts]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["exact", "windowed"])
def test_rows_of_several_searches_in_one_batch_score_as_each_row_alone(model, request):
    """Rows of all lengths, as of text endpoints; a window counts no padding."""
    values = request.getfixturevalue(model)
    generator = torch.Generator().manual_seed(0)
    searches = [Search(values.betas, [prompt]) for prompt in PROMPTS]
    for parents in ([0], [2, 1], [0, 7]):
        requests = []
        for length, each in enumerate(searches, start=2):
            chunk = random_chunk(generator, 4 * len(parents), length, ragged=True)
            requests.append(Request(values.backbone, each, parents, 4, chunk.tokens_RL, chunk.lengths_R))
        for totals_R, each in zip(score(requests), searches, strict=True):
            alone_R = torch.tensor([full(values, row) for row in each.rows], dtype=torch.float64)
            torch.testing.assert_close(totals_R, alone_R, atol=1e-9, rtol=1e-9)


async def test_a_search_whose_cache_was_given_up_reads_its_prefix_again(exact, monkeypatch):
    expected = await scores(exact, PROMPTS)
    monkeypatch.setattr(CACHES, "limit", 0)
    given_up = await scores(exact, PROMPTS)
    assert CACHES.bytes == 0
    for cached, recomputed in zip(expected, given_up, strict=True):
        torch.testing.assert_close(cached, recomputed, atol=1e-9, rtol=1e-9)


async def test_the_caches_that_are_given_up_are_the_least_recently_used(values, monkeypatch):
    states = [values.start(prompt) for prompt in PROMPTS]
    chunk = random_chunk(torch.Generator().manual_seed(0), 4, 3, ragged=False)
    for state in states:
        await state.score([0], 4, chunk)
    held = CACHES.bytes
    assert held > 0
    monkeypatch.setattr(CACHES, "limit", held)
    await states[0].score([1], 4, chunk)
    assert CACHES.take(states[1].search) is None
    assert CACHES.take(states[0].search) is not None and CACHES.take(states[2].search) is not None


async def test_a_search_that_is_gone_takes_its_cache_along(values):
    gc.collect()
    before = CACHES.bytes
    await search(values, 0, [5, 6, 7])
    gc.collect()
    assert CACHES.bytes == before


async def test_a_failing_request_fails_alone(values):
    broken = SimpleNamespace(tokens_RL=torch.full((4, 2), VOCABULARY + 5), lengths_R=torch.full((4,), 2))
    with pytest.raises(IndexError):
        await values.start([1]).score([0], 4, broken)
    await search(values, 0, [5, 6, 7])


async def test_only_new_tokens_are_read_once_an_adapter(values):
    read = []
    hook = values.backbone.model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    state = values.start([1] * 20)
    for parents, rows in (([0], 4), ([1, 2], 8)):
        chunk = SimpleNamespace(tokens_RL=torch.ones(rows, 6, dtype=torch.long), lengths_R=torch.full((rows,), 6))
        await state.score(parents, 4, chunk)
    hook.remove()
    assert read == [(1, 20)] * 3 + [(4, 6)] * 3 + [(8, 6)] * 3


@pytest.mark.slow(7)
async def test_searches_of_two_bundles_do_not_mix(values, model_dir):
    second_bundle = bundle(model_dir, 0)
    await asyncio.gather(*(search(each, 1, [1, 2, 3]) for each in (values, second_bundle, values, second_bundle)))
