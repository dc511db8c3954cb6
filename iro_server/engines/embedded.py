"""The frozen model in this process, on transformers: rows of all sessions step in one flat batch.

A step draws every live row's next token, then feeds all of them, and the prompts of sessions that have just joined,
through the model once. Sessions join and leave between steps. The forward pass is transformers' own; only attention is
ours (`attention.py`). A model for which that is not exact is refused at load (`equality.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from iro_server.engines.base import Chunk, ModelInfo, Sampling
from iro_server.engines.describe import describe
from iro_server.engines.equality import check_equality
from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.sample import next_tokens
from iro_server.engines.session import ChunkWork, PromptRows, SessionRows
from iro_server.telemetry.metrics import STEP_ROWS

PREFILL_TOKENS = 512  # prompts join a step up to so many tokens (one, however long, at least): live rows wait less
COMPACT = 32  # within a long chunk, rows that have stopped are dropped every so many tokens


class EmbeddedEngine:
    """Engine over a model directory: in float32 on a CPU, in the data type of its weights on a GPU.

    Close it, or use it as a context manager. ValueError for a model that it cannot run exactly.
    """

    def __init__(self, model_dir: str | Path, name: str | None = None, threads: int | None = None) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._threads = threads or torch.get_num_threads()  # torch's own choice, which OMP_NUM_THREADS overrides
        torch.set_num_threads(1)  # of this thread: its small operations must not wake a team beside the engine's
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.frozen = FrozenModel(model_dir, device)
        info = describe(Path(model_dir), name, self.tokenizer)
        self._info = replace(info, max_length=self.frozen.exact_length(info.max_length))
        self._tap = _Tap([self.frozen.embedding, *self.frozen.layers])
        self._arrivals: deque[tuple[Callable[[], None], Future[Any]]] = deque()
        self._joining: list[tuple[SessionRows, Future[None]]] = []
        self._live: list[SessionRows] = []
        self._awaited = 0  # sessions without which no step begins
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()
        try:
            check_equality(self, self.frozen, self.tokenizer)
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def live_rows(self) -> int:
        """Rows in the batch at this moment."""
        return sum(s.count for s in self._live)

    async def open(self, prompt_ids: Sequence[int], sampling: Sampling, layers: Sequence[int] = ()) -> EmbeddedSession:
        """As ``Engine.open``. ValueError: an empty prompt, one too long, or a layer the model does not have."""
        if not 0 < len(prompt_ids) < self._info.max_length:
            raise ValueError(
                f"the prompt has {len(prompt_ids)} tokens; the model takes 1 to {self._info.max_length - 1}"
            )
        if bad := [i for i in layers if not 0 <= i <= self._info.num_layers]:
            raise ValueError(f"the model has layers 0 to {self._info.num_layers}, not {bad}")
        seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(6), "big")
        prompt = PromptRows(prompt_ids, self.frozen.cache_shape, self.frozen.embedding.weight)
        rows = SessionRows(prompt, sampling, layers, seed, next(self._numbers))
        ready: Future[None] = Future()
        self._post(lambda: self._joining.append((rows, ready)), ready)
        await asyncio.wrap_future(ready)
        return EmbeddedSession(self, rows)

    @contextmanager
    def in_step(self, sessions: int) -> Iterator[None]:
        """For so many sessions, which are opened and closed within: each step waits until all that are not closed have
        asked for one. What a step computes depends, in its last bits, on what shares it: so it is the same every time.
        """
        self._post(lambda: self._await(sessions), Future())
        try:
            yield
        finally:
            self._post(lambda: self._await(0), Future())

    def _await(self, sessions: int) -> None:
        self._awaited = sessions

    def close(self) -> None:
        """Stop stepping; chunks in progress fail with CancelledError."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> EmbeddedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, arrival: Callable[[], None], waiting: Future[Any]) -> None:
        with self._wake:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._arrivals.append((arrival, waiting))
            self._wake.notify()

    @torch.no_grad()
    def _loop(self) -> None:
        torch.set_num_threads(self._threads)
        while True:
            with self._wake:
                while not (self._arrivals or self._ready() or self._closed):
                    self._wake.wait()
                if self._closed:
                    break
                arrivals = list(self._arrivals)
                self._arrivals.clear()
            for arrive, waiting in arrivals:
                try:
                    arrive()
                except Exception as failure:  # its own caller's alone: caches that found no memory, say
                    _settle(waiting, failure)
            try:
                if self._ready():
                    self._step()
            except Exception as failure:  # handed to every waiting caller: the loop serves those who come after
                self._fail(failure)
        self._fail(asyncio.CancelledError())

    def _ready(self) -> bool:
        waiting = len(self._joining) + len(self._live)
        return waiting > 0 and waiting >= self._awaited

    def _fail(self, failure: BaseException) -> None:
        waiting: list[Future] = [ready for _, ready in self._joining]
        waiting += [rows.work.done for rows in self._live if rows.work]
        self._joining, self._live = [], []
        for future in waiting:
            _settle(future, failure)

    def _step(self) -> None:
        live = sorted(self._live, key=lambda rows: rows.number)
        if live:
            STEP_ROWS.observe(sum(rows.count for rows in live))
            self._draw(live)
        joined = _first(self._joining, PREFILL_TOKENS)
        runs: list[SessionRows | PromptRows] = [*live, *(rows.prompt for rows, _ in joined)]
        states, hidden = self._feed(runs)
        at = 0
        for rows in live:
            span = slice(at, at + rows.count)
            rows.fed(states[span], {i: hidden[i][span] for i in rows.layers})
            at += rows.count
        for rows, ready in joined:
            at += rows.prompt.count
            rows.states = states[at - 1 : at].clone()
            _settle(ready, None)
        del self._joining[: len(joined)]
        for rows in [rows for rows in live if rows.finished]:
            self._live.remove(rows)
            work, rows.work = rows.work, None
            if work:
                _settle(work.done, work.result())

    def _draw(self, live: list[SessionRows]) -> None:
        """Every row's next token: one draw for all sessions that sample alike."""
        states = torch.cat([rows.states for rows in live if rows.states is not None])
        logits = self.frozen.logits(states)
        alike: dict[tuple[Any, ...], list[tuple[SessionRows, torch.Tensor, torch.Tensor]]] = {}
        at = 0
        for rows in live:
            uniforms = rows.uniforms()
            how = rows.sampling.temperature, rows.sampling.top_p, rows.sampling.top_k, uniforms.shape[1]
            alike.setdefault(how, []).append((rows, logits[at : at + len(uniforms)], uniforms))
            at += len(uniforms)
        for group in alike.values():
            sessions, parts, uniforms_of = zip(*group, strict=True)
            sizes = [len(part) for part in parts]
            drawn = next_tokens(torch.cat(parts), sessions[0].sampling, torch.cat(uniforms_of).to(logits.device))
            for rows, tokens, logprobs in zip(sessions, *(each.split(sizes) for each in drawn), strict=True):
                rows.drawn(tokens, logprobs)

    def _feed(self, runs: list[SessionRows | PromptRows]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        layers = {i for run in runs if isinstance(run, SessionRows) for i in run.layers}
        with self._tap.reading(layers) as hidden:
            out = self.frozen.decoder(
                input_ids=torch.cat([run.token_ids for run in runs])[None],
                position_ids=torch.cat([run.positions for run in runs])[None],
                use_cache=False,
                runs=runs,
            )
        return out.last_hidden_state[0], hidden


class EmbeddedSession:
    """A session of the embedded engine; see ``Session``."""

    def __init__(self, engine: EmbeddedEngine, rows: SessionRows) -> None:
        self._engine, self._rows = engine, rows
        self._open = True
        self._inner = {0: 0}  # row of the last chunk -> row of the batch; rows that stopped early are gone from it

    async def extend(self, parents: Sequence[int], num_successors: int, length: int) -> Chunk:
        """As ``Session.extend``. Long chunks go in parts: between parts, rows that have stopped leave the batch."""
        room = self._engine.info.max_length - self._rows.length
        if length > room:
            raise ValueError(f"{length} more tokens do not fit: the model has room for {room}")
        chunk = part = await self._extend([self._inner[p] for p in parents], num_successors, min(length, COMPACT))
        alive = torch.arange(len(chunk.lengths_R))
        while (left := length - chunk.tokens_RL.shape[1]) and not part.stopped_R.all():
            going = (~part.stopped_R).nonzero().flatten()
            alive = alive[going]
            part = await self._extend(going.tolist(), 1, min(left, COMPACT))
            chunk = _append(chunk, alive, part)
        self._inner = {outer: inner for inner, outer in enumerate(alive.tolist())}
        return chunk

    async def _extend(self, parents: Sequence[int], num_successors: int, length: int) -> Chunk:
        work = ChunkWork(parents, num_successors, length)

        def begin() -> None:
            self._rows.begin(work)
            self._engine._live.append(self._rows)

        self._engine._post(begin, work.done)
        return await asyncio.wrap_future(work.done)

    def close(self) -> None:
        def leave() -> None:
            if self._rows in self._engine._live:
                self._engine._live.remove(self._rows)
            self._engine._awaited -= 1

        if self._open and not self._engine._closed:
            self._open = False
            self._engine._post(leave, Future())


class _Tap:
    """Reads chosen layers' hidden states out of a forward pass."""

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._wanted: set[int] = set()
        self._hidden: dict[int, torch.Tensor] = {}
        for index, module in enumerate(modules):
            module.register_forward_hook(partial(self._read, index))

    def _read(self, index: int, _module: Any, _args: Any, out: torch.Tensor) -> None:
        if index in self._wanted:
            self._hidden[index] = (out[0] if isinstance(out, tuple) else out)[0]

    def reading(self, layers: set[int]) -> _Tap:
        self._wanted, self._hidden = layers, {}
        return self

    def __enter__(self) -> dict[int, torch.Tensor]:
        return self._hidden

    def __exit__(self, *_: object) -> None:
        self._wanted = set()


def _settle(future: Future[Any], outcome: Any) -> None:
    """Hand over a result or an exception, unless the caller has left: it may do so at any moment."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _first(joining: list[tuple[SessionRows, Future[None]]], limit: int) -> list[tuple[SessionRows, Future[None]]]:
    """The first waiting prompts up to ``limit`` tokens, one at least."""
    total = 0
    for count, (rows, _) in enumerate(joining):
        total += rows.prompt.count
        if count and total > limit:
            return joining[:count]
    return joining[:]


def _append(chunk: Chunk, alive: torch.Tensor, more: Chunk) -> Chunk:
    """``chunk`` with the rows ``alive`` continued by ``more``; the other rows are padded."""

    def widen(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        padded = new.new_zeros(old.shape[0], *new.shape[1:])
        padded[alive] = new
        return torch.cat([old, padded], dim=1)

    lengths, stopped = chunk.lengths_R.clone(), chunk.stopped_R.clone()
    lengths[alive] += more.lengths_R
    stopped[alive] |= more.stopped_R
    return Chunk(
        tokens_RL=widen(chunk.tokens_RL, more.tokens_RL),
        logprobs_RL=widen(chunk.logprobs_RL, more.logprobs_RL),
        lengths_R=lengths,
        stopped_R=stopped,
        hidden={i: widen(h, more.hidden[i]) for i, h in chunk.hidden.items()},
    )
