"""States that no engine reported, recomputed by one pass of the frozen model."""

from __future__ import annotations

import asyncio

import torch

from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import HEAD_STATE, Sampling
from iro_server.engines.embedded import EmbeddedEngine
from training.iro.head_states import head_states


def test_they_are_those_that_the_tokens_were_drawn_from(small_engine: EmbeddedEngine) -> None:
    """Completions of different lengths, in one batch, against the engine's own."""
    prompt = small_engine.tokenizer("The lamp by the river was lit every evening, until")["input_ids"]
    sampling = Sampling(seed=3, stop_ids=tuple(range(0, len(small_engine.tokenizer), 6)))  # about each sixth token
    params = SearchParams(num_successors=6)
    search = guided_search(small_engine, prompt, params, sampling, 12, keep_hidden=(HEAD_STATE,))
    finals = asyncio.run(search).finals
    assert len({len(final.tokens) for final in finals}) > 2
    states = head_states(small_engine.frozen, prompt, [final.tokens for final in finals])
    for final, recomputed in zip(finals, states, strict=True):
        torch.testing.assert_close(recomputed, final.hidden[HEAD_STATE].float(), atol=2e-3, rtol=2e-3)
