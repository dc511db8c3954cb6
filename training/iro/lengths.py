"""How long completions may be where a job does not say: as long as the frozen model's own usually are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from iro_server.decoding.base import SearchParams
from iro_server.engines.describe import Description
from training.iro.config import AlignConfig
from training.iro.data import Prompt, shards_of
from training.iro.executor import Executor
from training.iro.held import held_schema
from training.iro.rollouts import Batch, rollout_sampling
from training.iro.seeds import LENGTHS
from training.json_values import JsonObject
from training.run import Run

LEAST_TOKENS, MOST_TOKENS = 16, 512
CONTINUATION_TOKENS = 48  # of a text that the model continues without an end
QUANTILE = 0.9
PROMPTS, SAMPLES = 8, 4  # plain samples that are measured: 16,384 base tokens at most


def with_max_tokens(
    config: AlignConfig, run: Run, model: Description, executor: Executor, prompts: Sequence[Prompt], longest: int
) -> AlignConfig:
    """``config`` with a number for ``max_tokens`` "auto".

    ``prompts``: of which the first are measured, once in the life of the run. ``longest``: tokens of the job's longest
    prompt.
    """
    if config.max_tokens != "auto":
        return config
    most = min(MOST_TOKENS, model.info.max_length - longest)
    measured = prompts[:PROMPTS]

    def measure() -> JsonObject:
        shards = shards_of(measured, config.concurrency)
        sampling = rollout_sampling(config.temperature, model.info, held_schema(config, model))
        params = SearchParams(num_successors=SAMPLES)
        seeds = {prompt.index: run.derive_seed(LENGTHS, prompt.index) for prompt in measured}
        batches = [
            Batch(shard, [seeds[prompt.index] for prompt in shard], sampling, params, max_tokens=most)
            for shard in shards
        ]
        completions = [tokens for part in executor.roll_out(batches) for group in part["tokens"] for tokens in group]
        lengths = [len(tokens) for tokens in completions]
        stopped = [tokens[-1] in model.info.eos_ids for tokens in completions]
        answers = any("messages" in prompt.item for prompt in measured)
        max_tokens = choose(lengths, stopped, config.chunk_length, most, answers)
        run.emit("message", _report(lengths, stopped, most, max_tokens))
        return {"max_tokens": max_tokens, "lengths": lengths, "stopped": stopped}

    max_tokens = run.step("lengths", measure, "sampling")["max_tokens"]
    run.emit("defaults", data={"max_tokens": max_tokens})
    return config.model_copy(update={"max_tokens": max_tokens})


def choose(lengths: Sequence[int], stopped: Sequence[bool], chunk_length: int, most: int, answers: bool) -> int:
    """The tokens within which ``QUANTILE`` of the samples that stop do so, in whole chunks, LEAST_TOKENS to ``most``.

    Where fewer than half stop, an answer gets ``most``, and a text, which need not end, CONTINUATION_TOKENS.
    """
    if sum(stopped) < len(stopped) / 2:
        return most if answers else min(CONTINUATION_TOKENS, most)
    stopping_lengths = [length for length, end in zip(lengths, stopped, strict=True) if end]
    quantile = float(np.quantile(stopping_lengths, QUANTILE, method="higher"))
    return min(max(math.ceil(quantile / chunk_length) * chunk_length, LEAST_TOKENS), most)


def _report(lengths: Sequence[int], stopped: Sequence[bool], most: int, max_tokens: int) -> str:
    room = "" if most == MOST_TOKENS else ", all that the longest prompt leaves room for"
    within = sum(end and length <= max_tokens for length, end in zip(lengths, stopped, strict=True))
    return (
        f"max_tokens is {max_tokens}: of {len(lengths)} samples of the frozen model {within} stop within it and "
        f"{sum(stopped)} within {most} tokens{room} ({sum(lengths)} base tokens sampled to see it)"
    )
