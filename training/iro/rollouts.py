"""Completions of many prompts at once, and how they lie on disk."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from iro_server.decoding.base import Final, SearchParams, SearchResult
from iro_server.decoding.search import guided_search
from iro_server.engines.base import HEAD_STATE, Engine, ModelInfo, Sampling, Steering, cache_salt
from iro_server.graders.environment import GraderEnvironment
from training.checkpoints import SavedValue, WithTables
from training.iro.config import AlignConfig
from training.iro.data import Prompt
from training.iro.prefixes import prefix_table, state_table
from training.iro.values import Stack
from training.json_values import JsonObject
from value_heads import FeatureSpec
from value_heads.tilt import Tilt

if TYPE_CHECKING:
    from datasets import Dataset

COMPLETIONS, PREFIXES, HEAD_STATES = "completions", "prefixes", "head_states"  # tables of a stored shard


StatesOf = Callable[[Sequence[int], Sequence[Sequence[int]]], list[Tensor]]
"""From a prompt and its completions to the states [T, D] that the tokens of each were drawn from."""


class Source(Protocol):
    """Where shards are read from, such as a ``Run``."""

    def load(self, name: str) -> SavedValue: ...
    def table(self, name: str, table: str) -> Dataset: ...


@dataclass(frozen=True)
class Batch:
    """Prompts that are rolled out at once, in lockstep, each with a seed of its own.

    ``sampling``: of the frozen model's tokens, without a seed; a prompt's is ``sampling_of``. ``params``,
    ``max_tokens``, ``stack``: the search of each prompt, the length of a completion, the value functions that rank its
    rows. ``tilt``: steers where the search has a strength. ``spec``: the features that a fit reads. ``head_states``:
    whether the fit of a tilt follows.
    """

    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    sampling: Sampling
    params: SearchParams
    max_tokens: int
    stack: Stack | None = None
    tilt: Tilt | None = None
    spec: FeatureSpec | None = None
    head_states: bool = False

    @property
    def steering(self) -> Steering | None:
        if self.tilt is None or not self.params.strength:
            return None
        return Steering(self.tilt, self.params.strength, self.params.max_kl)

    def sampling_of(self, prompt: Prompt, seed: int) -> Sampling:
        return replace(self.sampling, seed=seed, schema=schema_of(prompt, self.sampling.schema))


def schema_of(prompt: Prompt, schema: str | None) -> str | None:
    """The schema of a job, which a conversation with tools is not held to: under it the model could not write a call.
    Neither is a request with tools to the job's model."""
    has_tools = "messages" in prompt.item and bool(prompt.item.get("tools"))
    return None if has_tools else schema


def rollout_sampling(temperature: float, info: ModelInfo, schema: str | None = None) -> Sampling:
    """Sampling to the frozen model's end tokens, of texts that fit ``schema``. Prompts are shared within this process's
    project."""
    salt = cache_salt(GraderEnvironment.of_this_process().project)
    return Sampling(temperature, stop_ids=info.eos_ids, salt=salt, schema=schema)


def plain(config: AlignConfig) -> SearchParams:
    """The first iteration's rollouts: samples of the frozen model, each to its end."""
    return SearchParams(beam_width=1, num_successors=config.rollouts_per_prompt, chunk_length=None)


def tilted_rollouts(rollouts_per_prompt: int) -> int:
    """Samples of a prompt by the tilt of a round. Values of the frozen model's samples alone rank those of the tilted
    one badly."""
    return max(2, rollouts_per_prompt // 2)


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
    return config.search


def roll_out(engine: Engine, batch: Batch, states_of: StatesOf | None = None) -> JsonObject:
    """The finals of each prompt's search, bit-identical every time, as they are saved. ``states_of``: computes the
    output head's states, which the engine does not report.

    ``prompts``: their indices. ``tokens``: of each final of each prompt, the pick first. ``prefixes``: the table that a
    fit of the batch's spec reads, None without one.
    """
    layers = {*(batch.spec.layers if batch.spec else ()), *([HEAD_STATE] if batch.head_states else [])}
    recomputed = {HEAD_STATE} & layers if states_of is not None else set()
    scorer = batch.stack if batch.params.rows > 1 else None  # a single row leaves nothing to choose

    async def search(prompt: Prompt, seed: int) -> SearchResult:
        return await guided_search(
            engine,
            prompt.token_ids,
            batch.params,
            batch.sampling_of(prompt, seed),
            batch.max_tokens,
            scorer,
            steering=batch.steering,
            keep_hidden=tuple(layers - recomputed),
        )

    async def search_all() -> list[SearchResult]:
        return await asyncio.gather(*map(search, batch.prompts, batch.seeds))

    with engine.lockstep(len(batch.prompts)):
        results = asyncio.run(search_all())
    flat = [final for result in results for final in result.finals]
    if states_of is not None and recomputed:
        for prompt, result in zip(batch.prompts, results, strict=True):
            states = states_of(prompt.token_ids, [final.tokens for final in result.finals])
            for final, states_TD in zip(result.finals, states, strict=True):
                final.hidden[HEAD_STATE] = states_TD
    return {
        "prompts": [prompt.index for prompt in batch.prompts],
        "tokens": [[final.tokens for final in result.finals] for result in results],
        "usage": _usage(batch.prompts, results),
        "drift": [drift(result.finals) for result in results],
        "prefixes": batch.spec and prefix_table(batch.spec, [final.hidden for final in flat]),
        "head_states": state_table([final.hidden[HEAD_STATE] for final in flat]) if batch.head_states else None,
    }


def drift(finals: Sequence[Final]) -> JsonObject:
    """Of a search's finals together: tokens, and nats from the frozen model. ``logprobs``: of each final, under it."""
    return {
        "tokens": float(sum(len(final.tokens) for final in finals)),
        "logprobs": [sum(final.logprobs) for final in finals],
        "kl": sum(final.kl for final in finals) / len(finals),
    }


def _usage(prompts: Sequence[Prompt], results: Sequence[SearchResult]) -> dict[str, int]:
    """Tokens read, kept, sampled from the frozen model, and scored by the value functions."""
    return {
        "prompt_tokens": sum(len(prompt.token_ids) for prompt in prompts),
        "completion_tokens": sum(len(final.tokens) for result in results for final in result.finals),
        "base_tokens": sum(result.usage.base_tokens for result in results),
        "value_tokens": sum(result.usage.value_tokens for result in results),
    }


def stored(shard: JsonObject) -> WithTables:
    """The result of ``roll_out`` as a checkpoint: prompts, usage and drift; tables of completions and, if any, of
    prefixes."""
    from datasets import Dataset, Features, List, Value

    searches = [place for place, group in enumerate(shard["tokens"]) for _ in group]
    completions = Dataset.from_dict(
        {
            "search": searches,
            "prompt": [shard["prompts"][search] for search in searches],
            "tokens": [tokens for group in shard["tokens"] for tokens in group],
        },
        Features({"search": Value("int32"), "prompt": Value("int64"), "tokens": List(Value("int32"))}),
    )
    tables = {COMPLETIONS: completions}
    if shard["prefixes"] is not None:
        tables[PREFIXES] = shard["prefixes"]
    if shard.get("head_states") is not None:
        tables[HEAD_STATES] = shard["head_states"]
    return WithTables({name: shard[name] for name in ("prompts", "usage", "drift")}, tables)


def completions_of(source: Source, name: str) -> list[list[list[int]]]:
    """Token ids of each final of each search of the stored shard ``name``."""
    table = source.table(name, COMPLETIONS).data.table.to_pydict()
    groups: list[list[list[int]]] = [[] for _ in source.load(name)["prompts"]]
    for search, tokens in zip(table["search"], table["tokens"], strict=True):
        groups[search].append(tokens)
    return groups


def commonest_tokens(completions: Iterable[Sequence[int]], count: int) -> tuple[int, ...]:
    """The ``count`` token ids that most completions hold, sorted."""
    completion_counts = Counter(token for tokens in completions for token in set(tokens))
    return tuple(sorted(token for token, _ in completion_counts.most_common(count)))
