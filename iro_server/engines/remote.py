"""The common part of engines over HTTP: a thread with the event loop of their requests, the model's description."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence

from iro_server import JsonObject
from iro_server.concurrency.tasks import gather_or_cancel
from iro_server.engines.adapter_holds import Adapter
from iro_server.engines.base import Alternatives, Chunk, EngineHealth, ModelInfo, Sampling, Steering
from iro_server.engines.describe import describe, load_tokenizer
from iro_server.engines.embedding import Embedding
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.replica import COMPLETIONS, Replica
from iro_server.engines.replicas import Replicas, Timing
from value_heads.features import HEAD_STATE
from value_heads.threads import share_cores_with_engine

Result = TypeVar("Result")
Prefix = TypeVar("Prefix", str, list[int])
START = 1200.0  # seconds that an engine which starts beside this process may take
NOTICE = 3.0  # seconds of waiting for it, after which the log says so
log = logging.getLogger("iro.engine")


@dataclass(frozen=True)
class Row:
    """One row of a chunk. ``head_values``: of each token, where the session asks for numbers of HEAD_STATE."""

    tokens: list[int]
    logprobs: list[float]
    stopped: bool
    alternatives: list[Alternatives] = field(default_factory=list)
    head_values: list[list[float]] = field(default_factory=list)

    def continued(self, more: Row) -> Row:
        """With the tokens that ``more`` adds."""
        tokens, logprobs = self.tokens + more.tokens, self.logprobs + more.logprobs
        alternatives, head_values = self.alternatives + more.alternatives, self.head_values + more.head_values
        return Row(tokens, logprobs, more.stopped, alternatives, head_values)

    def split(self, count: int) -> tuple[Row, Row]:
        """Its first ``count`` tokens, or fewer where it has fewer, and the others. Both of a stopped row are stopped
        where there are no others."""
        stopped = self.stopped and len(self.tokens) <= count
        return self._part(slice(count), stopped), self._part(slice(count, None), self.stopped)

    def _part(self, places: slice, stopped: bool) -> Row:
        tokens, logprobs = self.tokens[places], self.logprobs[places]
        return Row(tokens, logprobs, stopped, self.alternatives[places], self.head_values[places])


def chunk_of(rows: Sequence[Row], width: int, embedding: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Chunk:
    """``width``: of the model's states."""
    tokens_RL = pad_sequence([torch.tensor(row.tokens, dtype=torch.int64) for row in rows], batch_first=True)
    return Chunk(
        tokens_RL=tokens_RL,
        logprobs_RL=pad_sequence([torch.tensor(row.logprobs, dtype=torch.float32) for row in rows], batch_first=True),
        lengths_R=torch.tensor([len(row.tokens) for row in rows]),
        stopped_R=torch.tensor([row.stopped for row in rows]),
        hidden=({} if embedding is None else {0: embedding(tokens_RL)}) | _head_values(rows, width),
        alternatives=[row.alternatives for row in rows] if any(row.alternatives for row in rows) else None,
    )


def _head_values(rows: Sequence[Row], width: int) -> dict[int, torch.Tensor]:
    """The numbers of HEAD_STATE followed by zeros, [R, L, width], where rows have any."""
    if not rows[0].head_values:
        return {}
    numbers_RLK = pad_sequence([torch.tensor(row.head_values) for row in rows], batch_first=True)
    return {HEAD_STATE: torch.nn.functional.pad(numbers_RLK, (0, width - numbers_RLK.shape[-1]))}


class RemoteEngine:
    """``model_dir`` holds the tokenizer, and the weights that value functions read or adapt. Close it, or use it as a
    context manager.

    ValueError without URLs, or for an endpoint that is of no use; EngineUnavailable where none answers in ``START``
    seconds.
    """

    probe_every: ClassVar[float] = 2.0  # as Timing
    silence: ClassVar[float] = 15.0

    def __init__(self, model_dir: Path, endpoints: Endpoints, name: str | None = None) -> None:
        if not endpoints.urls:
            raise ValueError(f"an engine of kind {endpoints.kind!r} needs the URLs of its servers (IRO_ENGINE_URLS)")
        share_cores_with_engine()
        self.tokenizer = load_tokenizer(Path(model_dir))
        info = describe(Path(model_dir), name, self.tokenizer)
        self._info = replace(info, hidden=False, steers=frozenset(), drift=False, resumes=False)
        self.embedding = Embedding(Path(model_dir))
        timing = Timing(endpoints.timeout, endpoints.patience, self.probe_every, self.silence)
        self.replicas = Replicas(endpoints.urls, endpoints.key, timing, self.probe_url, self._check_late)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()
        try:
            self.submit(self._start(endpoints.model)).result()
        except BaseException:
            self.close()
            raise

    async def _start(self, model: str | None) -> None:
        urls = ", ".join(replica.url for replica in self.replicas.all)
        notice = self._loop.call_later(NOTICE, log.warning, "waiting up to %d s for an answer of %s", START, urls)
        try:
            models = await self.replicas.models(START)
        finally:
            notice.cancel()
        self.model = model or models[0]["id"]
        for url, served in (await self.replicas.models_by_url()).items():
            self._info = replace(self._info, max_length=min(self._max_length(url, served), self._info.max_length))
        await self.try_out()

    def _check_late(self, url: str, models: Sequence[JsonObject]) -> None:
        """Of a replica that answers only after the start. ValueError where it serves another model, or takes fewer
        tokens than requests may have by now."""
        max_length = self._max_length(url, models)
        if max_length < self._info.max_length:
            message = f"the engine at {url} takes {max_length} tokens (max_model_len), requests have up to"
            raise ValueError(f"{message} {self._info.max_length}: start it with as many, or start Iro again")

    def _max_length(self, url: str, models: Sequence[JsonObject]) -> int:
        """Tokens that a replica takes. ValueError where it serves another model."""
        served_model = next((model for model in models if model["id"] == self.model), None)
        if served_model is None:
            served_names = ", ".join(model["id"] for model in models)
            raise ValueError(f"the engine at {url} serves no model {self.model!r}, only: {served_names}")
        self.check_served(served_model)
        return int(served_model.get("max_model_len") or self._info.max_length)

    def probe_url(self, base: str) -> str:
        raise NotImplementedError

    def check_served(self, model: JsonObject) -> None:
        """ValueError for a model, as /models lists it, that this engine cannot use."""

    async def try_out(self) -> None:
        """Ask for one token: ValueError where the answer lacks what this engine needs."""
        raise NotImplementedError

    @property
    def info(self) -> ModelInfo:
        return self._info

    def submit(self, work: Coroutine[object, None, Result]) -> Future[Result]:
        """Run ``work`` on the engine's loop, whichever loop its caller lives on; cancel the future to end it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work: Callable[[], None]) -> None:
        """Do ``work`` on the engine's loop, unless it is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)

    def check(
        self, prompt_ids: Sequence[int], sampling: Sampling, layers: Sequence[int], steering: Steering | None
    ) -> None:
        if sampling.likeliest:
            raise ValueError(f"{self.info.name} is served over HTTP, where successors are drawn at random")
        if steering is not None:
            self.check_steering(steering)
        if self.info.lacks(layers):
            raise ValueError(f"{self.info.name} is served over HTTP, without hidden states past layer 0, the embedding")
        if not 0 < len(prompt_ids) < self.info.max_length:
            max_tokens = self.info.max_length - 1
            raise ValueError(f"the prompt has {len(prompt_ids)} tokens; the model takes 1 to {max_tokens}")

    def check_steering(self, steering: Steering) -> None:
        if missing := self.info.cannot_apply(steering.tilt):
            raise ValueError(f"{self.info.name} is served over HTTP, where no tilt has {', '.join(sorted(missing))}")
        if steering.max_kl is not None:
            raise ValueError(f"{self.info.name} is served over HTTP, where KL from the frozen model is not known")

    @contextmanager
    def lockstep(self, sessions: int) -> Iterator[None]:
        """Changes nothing: the endpoint batches requests as they arrive, and the rows of a batch shift the last bits of
        each other's log-probabilities. At equal seeds another token is drawn now and then."""
        yield

    def health(self) -> EngineHealth:
        """As ``Engine.health``. Of each replica: whether it is up, the rows that it decodes, the tokens that its prefix
        cache saved."""
        return EngineHealth(replicas=tuple(replica.report() for replica in self.replicas.all))

    def close(self) -> None:
        """As ``Engine.close``: requests in progress are cancelled."""
        if self._loop.is_closed():
            return
        self.submit(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.replicas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RemoteSession(Generic[Prefix]):
    """A session whose rows are what the endpoint is sent (``prefixes``: token ids or text), each continued by a request
    of its own. It stays with the replica that has its prompt in the cache."""

    def __init__(self, engine: RemoteEngine, prompt: Prefix, sampling: Sampling, layers: Sequence[int]) -> None:
        self.engine, self.sampling = engine, sampling
        self.embedding = engine.embedding if 0 in layers else None
        self.seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(8), "big")
        self.prefixes: list[Prefix] = [prompt]
        self.round = self.cached_tokens = 0
        self.replica: Replica | None = None
        self.pending: Future[Chunk] | None = None
        self.adapter: Adapter | None = None
        self.path = COMPLETIONS  # of its requests

    def request(self, parent: int, count: int, length: int, seed: int) -> JsonObject:
        """The body that asks for ``count`` continuations of a row; number i draws with ``seed`` + i."""
        raise NotImplementedError

    def read(self, payload: JsonObject, count: int, length: int) -> list[tuple[Prefix, Row]]:
        """Of each continuation: what it adds to the prefix, and its row. ValueError, or another error of a wrong shape,
        for an answer that cannot be used."""
        raise NotImplementedError

    async def extend(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> Chunk:
        """As ``Session.extend``. EngineUnavailable where no replica answers in time."""
        self.pending = self.engine.submit(self._extend(parents, num_successors, length, more))
        return await asyncio.wrap_future(self.pending)

    async def _extend(self, parents: Sequence[int], num_successors: int, length: int, more: int) -> Chunk:
        rows = await self._draw(parents, num_successors, length, more)
        return chunk_of(rows, self.engine.info.hidden_size, self.embedding)

    async def _draw(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> list[Row]:
        """The rows of a chunk, which are the session's from now on. Arguments as of ``extend``."""
        # A parent that occurs twice has twice as many continuations, all different.
        counts = {parent: count * num_successors for parent, count in Counter(parents).items()}
        answers = await self._continue_all(counts, length)
        of_parent = {parent: iter(answers[parent]) for parent in counts}
        origins = [parent for parent in parents for _ in range(num_successors)]
        sampled = [next(of_parent[parent]) for parent in origins]
        self.prefixes = [self.prefixes[parent] + piece for parent, (piece, _) in zip(origins, sampled, strict=True)]
        self.round += 1
        self.follow(origins, [row.tokens for _, row in sampled])
        return [row for _, row in sampled]

    async def _continue_all(self, counts: Mapping[int, int], length: int) -> dict[int, list[tuple[Prefix, Row]]]:
        """``counts[parent]`` continuations of each parent."""
        answers = await gather_or_cancel(self._continue(parent, count, length) for parent, count in counts.items())
        return dict(zip(counts, answers, strict=True))

    async def _continue(self, parent: int, count: int, length: int, attempt: int = 0) -> list[tuple[Prefix, Row]]:
        body = self.request(parent, count, length, derive(self.seed, self.round, parent, attempt))
        read = partial(self.read, count=count, length=length)
        sampled, self.replica = await self.engine.replicas.complete(body, read, self.replica, self.adapter, self.path)
        return sampled

    def follow(self, parents: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """Called as rows grow: these tokens after these rows."""

    def close(self) -> None:
        if self.pending is not None:
            self.pending.cancel()


def derive(seed: int, round: int, parent: int, attempt: int = 0) -> int:
    """A 62-bit seed of one request. ``attempt``: 0 of the first."""
    digest = hashlib.sha256(f"{seed} {round} {parent}{f' {attempt}' if attempt else ''}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2
