"""The frozen model on one or more vLLM servers, by token ids over ``POST /v1/completions``.

A beam is its token ids, from the prompt on: each round sends every live beam as the prompt of one request for its
continuations, all at once, and vLLM batches them with everybody else's. What it has read before lies in its prefix
cache, so that a round re-reads little but the last chunk. Nothing is tokenised twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from iro_server.engines.base import Chunk, Sampling
from iro_server.engines.remote import RemoteEngine, Row, chunk_of
from iro_server.engines.replicas import Replica
from iro_server.tasks import together


class VLLMEngine(RemoteEngine):
    """Engine over vLLM. Log-probabilities are those at temperature 1, whatever the sampling's."""

    def probe_url(self, base: str) -> str:
        return f"{base.removesuffix('/v1')}/health"

    async def try_out(self) -> None:
        prompt = [self.info.eos_ids[0] if self.info.eos_ids else 0]
        body = request(self.model, prompt, 1, 1, Sampling(temperature=0.0), seed=0)

        def has_ids(payload: Any) -> bool:
            return "token_ids" in payload["choices"][0]

        if not (await self.replicas.complete(body, has_ids))[0]:
            raise ValueError("the endpoint gives no token ids: for one that is not vLLM, use the engine kind \"text\"")

    async def open(self, prompt_ids: Sequence[int], sampling: Sampling, layers: Sequence[int] = ()) -> VLLMSession:
        """As ``Engine.open``. ValueError for ``layers``: vLLM reports no hidden states."""
        self.check(prompt_ids, layers)
        return VLLMSession(self, prompt_ids, sampling)


class VLLMSession:
    """A session of the vLLM engine; see ``Session``. It stays with the replica that has its prompt in the cache."""

    def __init__(self, engine: VLLMEngine, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        self.engine, self.sampling = engine, sampling
        self.seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(8), "big")
        self.rows: list[list[int]] = [list(prompt_ids)]
        self.round = 0
        self.replica: Replica | None = None
        self.pending: Future[Chunk] | None = None

    async def extend(self, parents: Sequence[int], num_successors: int, length: int) -> Chunk:
        """As ``Session.extend``. EngineUnavailable where no replica answers in time."""
        room = self.engine.info.max_length - max(len(self.rows[parent]) for parent in parents)
        if length > room:
            raise ValueError(f"{length} more tokens do not fit: the model has room for {room}")
        self.pending = self.engine.submit(self._extend(parents, num_successors, length))
        return await asyncio.wrap_future(self.pending)

    async def _extend(self, parents: Sequence[int], num_successors: int, length: int) -> Chunk:
        counts = Counter(parents)  # a parent that occurs twice is one request for twice as many rows, all different
        answers = await together(self._continue(p, count * num_successors, length) for p, count in counts.items())
        of_parent = {parent: iter(rows) for parent, rows in zip(counts, answers, strict=True)}
        origins = [parent for parent in parents for _ in range(num_successors)]
        rows = [next(of_parent[parent]) for parent in origins]
        self.rows = [self.rows[parent] + row.tokens for parent, row in zip(origins, rows, strict=True)]
        self.round += 1
        return chunk_of(rows)

    async def _continue(self, parent: int, count: int, length: int) -> list[Row]:
        seed = derive(self.seed, self.round, parent)
        body = request(self.engine.model, self.rows[parent], count, length, self.sampling, seed)
        read = partial(rows_of, count=count, length=length, stop_ids=self.sampling.stop_ids)
        rows, self.replica = await self.engine.replicas.complete(body, read, self.replica)
        return rows

    def close(self) -> None:
        if self.pending is not None:
            self.pending.cancel()


def derive(seed: int, round: int, parent: int) -> int:
    """A 62-bit seed; row i of a request draws with seed + i."""
    digest = hashlib.sha256(f"{seed} {round} {parent}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def request(model: str, prompt: list[int], count: int, length: int, sampling: Sampling, seed: int) -> dict[str, Any]:
    """All that bears on sampling is said, lest the endpoint's own defaults or the model's generation config decide."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "n": count,
        "max_tokens": length,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed,
        "ignore_eos": True,  # what ends a row is in stop_token_ids
        "stop_token_ids": list(sampling.stop_ids),
        "return_token_ids": True,
        "logprobs": 0,
    }
    return body | ({"cache_salt": sampling.salt} if sampling.salt else {})


def rows_of(payload: Any, *, count: int, length: int, stop_ids: Sequence[int]) -> list[Row]:
    """ValueError, or another of a wrong shape's errors, unless these are ``count`` rows that each end where they
    should."""
    choices = sorted(payload["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(count)):
        raise ValueError(f"{len(choices)} rows instead of {count}")
    return [_row(choice, length, stop_ids) for choice in choices]


def _row(choice: Any, length: int, stop_ids: Sequence[int]) -> Row:
    tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if not tokens or not all(type(token) is int and token >= 0 for token in tokens):
        raise ValueError(f"token_ids are {str(tokens)[:80]}")
    stopped = tokens[-1] in stop_ids
    if len(tokens) > length or (len(tokens) < length and not stopped):
        raise ValueError(f"{len(tokens)} tokens instead of {length}, finish_reason {choice['finish_reason']}")
    if len(logprobs) != len(tokens):
        raise ValueError(f"{len(logprobs)} log-probabilities of {len(tokens)} tokens")
    return Row(tokens, [float(each) for each in logprobs], stopped)
