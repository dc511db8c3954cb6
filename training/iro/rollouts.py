"""Completions of many prompts at once, and their hidden states as they are kept on disk.

Axes in tensor names: R completions, T tokens of the longest, N tokens of all completions one after another, D width.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iro_server.decoding.base import SearchParams, SearchResult
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling, cache_salt
from iro_server.surroundings import Surroundings
from iro_server.telemetry.tracing import untraced
from training.iro.config import AlignConfig
from training.iro.data import Prompt, TokenizingEngine
from training.iro.values import Stack
from value_heads.features import TOKENS


@dataclass(frozen=True)
class Batch:
    """Prompts that are rolled out at once, in step, and a seed for each. ``layers``: hidden states to keep."""

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    params: SearchParams
    stack: Stack | None = None
    layers: tuple[int, ...] = ()
    salt: str = field(default_factory=lambda: cache_salt(Surroundings.of_this_process().project))


def plain(config: AlignConfig) -> SearchParams:
    """The first iteration's rollouts: samples of the frozen model, each to its end."""
    return SearchParams(beam_width=1, num_successors=config.rollouts_per_prompt, chunk_length=None)


def exploring(config: AlignConfig) -> tuple[SearchParams, int]:
    """Later iterations' rollouts: one search of a prompt, and how many independent ones it gets.

    Together they draw as many rows as ``guided``. A single search ends with copies of one beam, whose prefixes are
    equal until the last chunk: nothing to learn from at earlier tokens. Each of several keeps one beam.
    """
    rows = config.beam_width * config.num_successors
    searches = min(config.guided_searches, max(1, rows // 2))
    if searches == 1:
        return guided(config), 1
    params = guided(config).model_copy(update={"beam_width": 1, "num_successors": rows // searches})
    return params, searches


def guided(config: AlignConfig) -> SearchParams:
    """The aligned model's search, as it is validated and served."""
    return SearchParams(
        beam_width=config.beam_width,
        num_successors=config.num_successors,
        chunk_length=config.chunk_length,
        selection=config.selection,
    )


def roll_out(engine: TokenizingEngine, config: AlignConfig, batch: Batch) -> dict[str, Any]:
    """The finals of each prompt's search, the same to the bit every time, as they are saved.

    ``prompts``: their indices. ``tokens``: of each final of each prompt, the pick first. ``hidden``: the states of all
    finals' tokens by layer, [N, D] float16, half of what they take in memory.
    """

    max_tokens = config.max_tokens
    assert max_tokens != "auto"  # measured before the first batch but those that measure it

    async def search(prompt: Prompt, seed: int) -> SearchResult:
        sampling = Sampling(config.temperature, seed=seed, stop_ids=engine.info.eos_ids, salt=batch.salt)
        return await guided_search(
            engine, prompt.token_ids, batch.params, sampling, max_tokens, batch.stack, keep_hidden=batch.layers
        )

    async def search_all() -> list[SearchResult]:
        return await asyncio.gather(*map(search, batch.prompts, batch.seeds))

    with engine.in_step(len(batch.prompts)), untraced():  # thousands of searches are too many for one trace
        results = asyncio.run(search_all())
    flat = [final for result in results for final in result.finals]
    return {
        "prompts": [prompt.index for prompt in batch.prompts],
        "tokens": [[final.tokens for final in result.finals] for result in results],
        "usage": _usage(batch.prompts, results),
        "hidden": {layer: torch.cat([final.hidden[layer] for final in flat]).half().cpu() for layer in batch.layers},
    }


def _usage(prompts: Sequence[Prompt], results: Sequence[SearchResult]) -> dict[str, int]:
    """Tokens read, kept, sampled from the frozen model, and scored by the value functions."""
    return {
        "prompt_tokens": sum(len(prompt.token_ids) for prompt in prompts),
        "completion_tokens": sum(len(final.tokens) for result in results for final in result.finals),
        "base_tokens": sum(result.usage.base_tokens for result in results),
        "value_tokens": sum(result.usage.value_tokens for result in results),
    }


def unpack(shard: dict[str, Any]) -> tuple[dict[int, Tensor], Tensor, Tensor]:
    """hidden[layer] [R, T, D] float32 padded with zeros, hidden[TOKENS] [R, T]; lengths [R]; prompt index [R]."""
    tokens = [torch.tensor(tokens) for group in shard["tokens"] for tokens in group]
    lengths = [len(row) for row in tokens]
    hidden = {
        layer: pad_sequence(states.float().split(lengths), batch_first=True)
        for layer, states in shard["hidden"].items()
    }
    hidden[TOKENS] = pad_sequence(tokens, batch_first=True, padding_value=-1)
    sizes = torch.tensor([len(group) for group in shard["tokens"]])
    return hidden, torch.tensor(lengths), torch.tensor(shard["prompts"]).repeat_interleave(sizes)


def commonest_tokens(completions: Iterable[Sequence[int]], count: int) -> tuple[int, ...]:
    """The ``count`` token ids that most completions hold, sorted."""
    held = Counter(token for tokens in completions for token in set(tokens))
    return tuple(sorted(token for token, _ in held.most_common(count)))
