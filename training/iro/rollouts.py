"""Completions of many prompts at once, their grades, and their hidden states as they are kept on disk.

Axes in tensor names: R completions, T tokens of the longest, N tokens of all completions one after another, D width.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iro_server.decoding.base import Final, Scorer, SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.graders import Grade, Grader, Sample
from training.iro.config import AlignConfig
from training.iro.data import AlignError, Prompt, TokenizingEngine
from value_heads.features import TOKENS


def plain(config: AlignConfig) -> SearchParams:
    """The first iteration's rollouts: samples of the frozen model, each to its end."""
    return SearchParams(beam_width=1, num_successors=config.rollouts_per_prompt, chunk_length=None)


def guided(config: AlignConfig) -> SearchParams:
    return SearchParams(
        beam_width=config.beam_width,
        num_successors=config.num_successors,
        chunk_length=config.chunk_length,
        selection=config.selection,
    )


def roll_out(
    engine: TokenizingEngine,
    prompts: Sequence[Prompt],
    config: AlignConfig,
    params: SearchParams,
    scorer: Scorer | None,
    seed: Callable[[int], int],
    layers: tuple[int, ...] = (),
) -> list[list[Final]]:
    """Every final of each prompt, all prompts in one batch. ``seed``: prompt index -> seed."""

    async def search(prompt: Prompt) -> list[Final]:
        sampling = Sampling(config.temperature, seed=seed(prompt.index), stop_ids=engine.info.eos_ids)
        result = await guided_search(
            engine, prompt.token_ids, params, sampling, config.max_tokens, scorer, keep_hidden=layers
        )
        return result.finals

    async def search_all() -> list[list[Final]]:
        return await asyncio.gather(*map(search, prompts))

    return asyncio.run(search_all())


def pack(prompts: Sequence[Prompt], finals: Sequence[Sequence[Final]], layers: tuple[int, ...]) -> dict[str, Any]:
    """A shard of rollouts as it is saved: hidden states as float16 [N, D], half of what they take in memory."""
    flat = [final for group in finals for final in group]
    return {
        "prompts": [prompt.index for prompt in prompts],
        "tokens": [[final.tokens for final in group] for group in finals],
        "values": [[final.value for final in group] for group in finals],
        "hidden": {layer: torch.cat([final.hidden[layer] for final in flat]).half().cpu() for layer in layers},
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


def grade(
    engine: TokenizingEngine, grader: Grader, prompts: Sequence[Prompt], tokens: Sequence[Sequence[Sequence[int]]]
) -> list[list[Grade]]:
    """A grade for each completion of each prompt."""
    pairs = [
        (Sample(engine.tokenizer.decode(completion, skip_special_tokens=True)), prompt.item)
        for prompt, group in zip(prompts, tokens, strict=True)
        for completion in group
    ]
    grades = iter(grader.grade_many(pairs))
    return [[next(grades) for _ in group] for group in tokens]


def rewards_of(grades: Sequence[Sequence[Grade]], first: bool, warn: Callable[[str], None]) -> list[list[float]]:
    """Rewards, NaN where there is none. AlignError if the ``first`` batch shows that the grader does not work."""
    errors = [grade.error for group in grades for grade in group if grade.error is not None]
    total = sum(len(group) for group in grades)
    if first and len(errors) > total / 2:
        raise AlignError(
            f"the grader failed on {len(errors)} of {total} samples: {errors[0]}", "grader_error", "grader"
        )
    if errors:
        warn(f"{len(errors)} of {total} samples could not be graded and were left out: {errors[0]}")
    return [[math.nan if grade.error is not None else grade.reward for grade in group] for group in grades]
