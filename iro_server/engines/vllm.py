"""The frozen model on one or more vLLM servers, by token ids over ``POST /v1/completions``.

A beam is its token ids, from the prompt on: each round sends every live beam as a prompt for its continuations, and
vLLM batches them with everybody else's. What it has read before lies in its prefix cache, so that a round re-reads
little but the last chunk. Nothing is tokenised twice.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

from iro_server import JsonObject
from iro_server.concurrency.tasks import gather_or_cancel
from iro_server.engines.base import Alternatives, Sampling, Steering
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.remote import RemoteEngine, RemoteSession, Row
from iro_server.engines.vllm_adapters import AdapterFolder, StaticTilt
from iro_server.engines.vllm_steering import WORDS_CHUNK, SteeredPrompt
from value_heads.prompt_features import TokenGroups
from value_heads.tilt import Tilt, TiltPart


class VLLMEngine(RemoteEngine):
    """Engine over vLLM. Log-probabilities are those at temperature 1, whatever the sampling's, before biases, penalties
    and a schema's mask. Where a tilt has an adapter they are the adapted model's."""

    def __init__(self, model_dir: Path, endpoints: Endpoints, name: str | None = None) -> None:
        self._adapters = AdapterFolder(Path(model_dir), endpoints.adapters)
        self._static: WeakKeyDictionary[Tilt, dict[float, StaticTilt]] = WeakKeyDictionary()
        self._groups: TokenGroups | None = None
        self._preparing = threading.Lock()
        super().__init__(model_dir, endpoints, name)
        steers: frozenset[TiltPart] = frozenset({"bias", "words"})
        self._info = replace(self._info, steers=steers | ({"states"} if endpoints.adapters else set()))

    def probe_url(self, base: str) -> str:
        return f"{base.removesuffix('/v1')}/health"

    async def try_out(self) -> None:
        prompt = [self.info.eos_ids[0] if self.info.eos_ids else 0]
        body = request(self.model, prompt, 1, 1, Sampling(temperature=0.0), seed=0)

        def has_ids(payload: JsonObject) -> bool:
            return "token_ids" in payload["choices"][0]

        if not (await self.replicas.complete(body, has_ids))[0]:
            raise ValueError('the endpoint gives no token ids: for one that is not vLLM, use the engine kind "text"')

    async def open(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        layers: Sequence[int] = (),
        steering: Steering | None = None,
    ) -> VLLMSession:
        """As ``Engine.open``. ValueError for ``layers`` past 0: vLLM reports no hidden states."""
        self.check(prompt_ids, sampling, layers, steering)
        session = VLLMSession(self, list(prompt_ids), sampling, layers)
        if steering is not None:
            session.steered = await asyncio.to_thread(self._steered, steering, prompt_ids)
            session.adapter = session.steered.adapter
        return session

    def _steered(self, steering: Steering, prompt_ids: Sequence[int]) -> SteeredPrompt:
        with self._preparing:
            static = self._static.setdefault(steering.tilt, {})
            if steering.strength not in static:
                static[steering.strength] = self._adapters.of(steering.tilt, steering.strength)
            if self._groups is None:
                self._groups = TokenGroups.of_tokenizer(self.tokenizer, len(steering.tilt.bias))
        return SteeredPrompt(steering.tilt, steering.strength, static[steering.strength], self._groups, prompt_ids)


class VLLMSession(RemoteSession[list[int]]):
    """A session of the vLLM engine; see ``Session``."""

    steered: SteeredPrompt | None = None

    def request(self, parent: int, count: int, length: int, seed: int) -> JsonObject:
        model = self.adapter.name if self.adapter else self.engine.model
        seed_asked_for = None if self.sampling.seed is None else seed
        body = request(model, self.prefixes[parent], count, length, self.sampling, seed_asked_for)
        if self.steered:
            biases = Counter(self.steered.logit_bias(parent))
            biases.update(body.get("logit_bias", {}))
            body["logit_bias"] = dict(biases)
        return body

    async def _continue_all(self, counts: Mapping[int, int], length: int) -> dict[int, list[tuple[list[int], Row]]]:
        """Parents with equal numbers of continuations are one request, unless each has a seed or a bias of its own."""
        if self.sampling.seed is not None or (self.steered and self.steered.reads_words):
            return await super()._continue_all(counts, length)
        groups = [[parent for parent in counts if counts[parent] == count] for count in sorted(set(counts.values()))]
        answers = await gather_or_cancel(self._continue_group(group, counts[group[0]], length) for group in groups)
        return {parent: rows for answer in answers for parent, rows in answer.items()}

    async def _continue_group(
        self, parents: Sequence[int], count: int, length: int
    ) -> dict[int, list[tuple[list[int], Row]]]:
        body = self.request(parents[0], count, length, seed=0)
        body["prompt"] = [self.prefixes[parent] for parent in parents]
        read = partial(self.read, count=count * len(parents), length=length)
        rows, self.replica = await self.engine.replicas.complete(body, read, self.replica, self.adapter)
        return {parent: rows[place * count : (place + 1) * count] for place, parent in enumerate(parents)}

    async def _draw(self, parents: Sequence[int], num_successors: int, length: int) -> list[Row]:
        """As of any session, but in several requests where what the rows have said changes their tilt, and the sampling
        does not hold them to one."""
        if self.steered is None or not self.steered.reads_words or self.sampling.remembers:
            return await super()._draw(parents, num_successors, length)
        rows = await super()._draw(parents, num_successors, min(length, WORDS_CHUNK))
        for start in range(WORDS_CHUNK, length, WORDS_CHUNK):
            live = [place for place, row in enumerate(rows) if not row.stopped]
            if not live:
                break
            prefixes, said = self.prefixes, self.steered.features.rows
            more = await super()._draw(live, 1, min(WORDS_CHUNK, length - start))
            for place, row, prefix, words in zip(live, more, self.prefixes, self.steered.features.rows, strict=True):
                rows[place] = rows[place].continued(row)
                prefixes[place], said[place] = prefix, words
            self.prefixes, self.steered.features.rows = prefixes, said
        return rows

    def follow(self, parents: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        if self.steered:
            self.steered.follow(parents, tokens)

    def read(self, payload: JsonObject, count: int, length: int) -> list[tuple[list[int], Row]]:
        if not self.round:
            details = (payload.get("usage") or {}).get("prompt_tokens_details") or {}
            self.cached_tokens = int(details.get("cached_tokens") or 0)
        return [(row.tokens, row) for row in rows_of(payload, count, length, self.sampling)]


def request(model: str, prompt: list[int], count: int, length: int, sampling: Sampling, seed: int | None) -> JsonObject:
    """Sets every sampling field: no default of the endpoint or of the model's generation config applies.

    Without a seed vLLM draws all rows of a batch at once; with seeds one by one.
    """
    body: JsonObject = {
        "model": model,
        "prompt": prompt,
        "n": count,
        "max_tokens": length,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,  # what ends a row is in stop_token_ids
        "stop_token_ids": list(sampling.stop_ids),
        "return_token_ids": True,
        "logprobs": sampling.alternatives,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if seed is not None:
        body["seed"] = seed
    if sampling.alternatives:
        body["return_tokens_as_token_ids"] = True  # the likeliest tokens are named so: "token_id:17"
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.schema is not None:
        body["structured_outputs"] = {"json": json.loads(sampling.schema)}
    return body | ({"cache_salt": sampling.salt} if sampling.salt else {})


def rows_of(payload: JsonObject, count: int, length: int, sampling: Sampling) -> list[Row]:
    """ValueError, or another of a wrong shape's errors, unless these are ``count`` rows that each end where they
    should."""
    choices = sorted(payload["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(count)):
        raise ValueError(f"{len(choices)} rows instead of {count}")
    return [_row(choice, length, sampling) for choice in choices]


def _row(choice: JsonObject, length: int, sampling: Sampling) -> Row:
    tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if not tokens or not all(type(token) is int and token >= 0 for token in tokens):
        raise ValueError(f"token_ids are {str(tokens)[:80]}")
    stopped = tokens[-1] in sampling.stop_ids
    if len(tokens) > length or (len(tokens) < length and not stopped):
        raise ValueError(f"{len(tokens)} tokens instead of {length}, finish_reason {choice['finish_reason']}")
    if len(logprobs) != len(tokens):
        raise ValueError(f"{len(logprobs)} log-probabilities of {len(tokens)} tokens")
    top_logprobs = choice["logprobs"]["top_logprobs"] if sampling.alternatives else []  # else named by their texts
    alternatives = [_alternatives(top, sampling.alternatives) for top in top_logprobs]
    return Row(tokens, [float(logprob) for logprob in logprobs], stopped, alternatives)


def _alternatives(top: JsonObject, count: int) -> Alternatives:
    """vLLM's own list, in which the token drawn may be one more."""
    named = [(int(name.removeprefix("token_id:")), float(logprob)) for name, logprob in top.items()]
    return sorted(named, key=lambda alternative: -alternative[1])[:count]
