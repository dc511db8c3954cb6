"""The frozen model in this process, on transformers: rows of all sessions step in one flat batch.

A step draws every live row's next token, then feeds all of them, and parts of the prompts of sessions that have just
joined, through the model once. Sessions join and leave between steps. The forward pass is transformers' own; only
attention is ours (`attention.py`). A model for which that is not exact is refused at load (`equality.py`).
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
from pathlib import Path
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch

from iro_server.engines.adjusted import AdjustedRows
from iro_server.engines.base import HEAD_STATE, Chunk, EngineHealth, ModelInfo, Sampling, Steering
from iro_server.engines.chunk_parts import ChunkParts
from iro_server.engines.describe import describe, load_tokenizer
from iro_server.engines.endpoints import Precision
from iro_server.engines.equality import check_equality
from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.grammars import GrammarRows, grammars_of
from iro_server.engines.isolation import run_apart
from iro_server.engines.memory import as_memory_error, available_memory
from iro_server.engines.model_runner import ModelRunner
from iro_server.engines.scheduler import PrefillBudget, Run, Scheduler, settle
from iro_server.engines.sequences import ChunkWork, SequenceGroup
from iro_server.engines.steering import SteeredRows
from iro_server.engines.thread_count import ThreadCount
from iro_server.telemetry.metrics import STEP_ROWS
from value_heads.prompt_features import TokenGroups
from value_heads.threads import compute_as_engine, on_fresh_thread, usual_threads
from value_heads.tilt import BoundTilt, Tilt

PRODUCTS: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AHEAD = 4  # chunks of a single row that are asked for before they are awaited
COMPACT = 32  # within a long chunk, rows that have stopped are dropped every so many tokens


class EmbeddedEngine:
    """Engine over a model directory: in float32 on a CPU, in the data type of its weights on a GPU.

    ``precision``: of the products with weights on a CPU. Close it, or use it as a context manager. ValueError for a
    model that it cannot run exactly, or a precision that this CPU does not multiply in.
    """

    def __init__(
        self,
        model_dir: str | Path,
        name: str | None = None,
        threads: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._threads = ThreadCount(threads or usual_threads())
        torch.set_num_threads(1)  # of this thread: its small operations must not wake a team beside the engine's
        self.tokenizer = load_tokenizer(Path(model_dir))
        self.frozen = FrozenModel(model_dir, device)
        self.frozen.pack_weights(PRODUCTS[precision])
        info = describe(Path(model_dir), name, self.tokenizer)
        self._info = replace(info, max_length=self.frozen.exact_length(info.max_length))
        self.runner = ModelRunner(self.frozen)
        self._spec = self.runner.cache_spec
        self._cache_capacity = available_memory(self._spec.device) // 2 // self._spec.token_bytes
        self._budget = prefill_budget(device, self.runner.attention_span)
        self._scheduler = Scheduler(self._spec, self._budget)
        self._arrivals: deque[tuple[Callable[[], None], Future[Any]]] = deque()
        self._numbers = itertools.count()
        self._tilts: WeakKeyDictionary[Tilt, BoundTilt] = WeakKeyDictionary()
        self._groups: TokenGroups | None = None
        self._binding = threading.Lock()
        self._wake = threading.Condition()
        self._closed = False
        self.steps_together = False  # sessions, in ``lockstep``
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
    def max_threads(self) -> int:
        """Threads of a step on an idle machine."""
        return self._threads.most

    def health(self) -> EngineHealth:
        """As ``Engine.health``. A step reads the weights in the time of ``step_units`` rows' arithmetic."""
        shared_rows = self._budget.step_units // 2
        return EngineHealth(
            live_rows=self._scheduler.live_rows, cache_capacity=self._cache_capacity, shared_rows=shared_rows
        )

    async def open(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        layers: Sequence[int] = (),
        steering: Steering | None = None,
        head_rows: torch.Tensor | None = None,
    ) -> EmbeddedSession:
        """As ``Engine.open``. Sessions that are open at the same time share the cache of an equal prompt of equal salt.
        ValueError: an empty prompt, one too long, a layer the model does not have, a tilt of another model, or
        ``head_rows``: it reports the states; of these SchemaRefused: a schema that no grammar can be made of."""
        if head_rows is not None:
            raise ValueError("the engine reports the output head's states, not numbers of them")
        if not 0 < len(prompt_ids) < self._info.max_length:
            raise ValueError(
                f"the prompt has {len(prompt_ids)} tokens; the model takes 1 to {self._info.max_length - 1}"
            )
        if missing_layers := [i for i in layers if not (0 <= i <= self._info.num_layers or i == HEAD_STATE)]:
            raise ValueError(f"the model has layers 0 to {self._info.num_layers}, not {missing_layers}")
        seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(6), "big")
        steered = None
        if steering:
            bound = await asyncio.to_thread(self._bound, steering.tilt)
            steered = SteeredRows(steering, bound, prompt_ids)
        adjusted = await self._adjusted(sampling) if sampling.adjusts else None
        group = SequenceGroup(self._spec, sampling, layers, seed, next(self._numbers), steered, adjusted)
        opened: Future[None] = Future()
        self._post(lambda: self._scheduler.open(group, prompt_ids, opened), opened)
        try:
            await asyncio.wrap_future(opened)
        except asyncio.CancelledError:
            self.leave(group)
            raise
        return EmbeddedSession(self, group)

    async def _adjusted(self, sampling: Sampling) -> AdjustedRows:
        if sampling.schema is None:
            return AdjustedRows(sampling, None)
        grammars = grammars_of(self.tokenizer, self._info.eos_ids)
        matcher = await asyncio.to_thread(grammars.start, sampling.schema)
        return AdjustedRows(sampling, GrammarRows(matcher, sampling.stop_ids))

    def _bound(self, tilt: Tilt) -> BoundTilt:
        """The tilt with this model's output head, kept as long as the tilt is."""
        with self._binding:
            if tilt not in self._tilts:
                head_VD = self.frozen.head_weight
                groups = self._groups = self._groups or TokenGroups.of_tokenizer(self.tokenizer, len(head_VD))
                self._tilts[tilt] = on_fresh_thread(lambda: BoundTilt(tilt, head_VD, groups))
            return self._tilts[tilt]

    @contextmanager
    def lockstep(self, sessions: int) -> Iterator[None]:
        """As ``Engine.lockstep``: each step waits until all sessions that are not closed have asked for one. The last
        bits of a step's results depend on the rows that share it: those are the same every time.
        """
        self.steps_together = True
        self._post(lambda: self._await_sessions(sessions), Future())
        try:
            yield
        finally:
            self.steps_together = False
            self._post(lambda: self._await_sessions(0), Future())

    def _await_sessions(self, count: int) -> None:
        self._scheduler.awaited = count

    def extend(self, group: SequenceGroup, work: ChunkWork) -> None:
        """Sample a chunk of a session's rows."""
        self._post(lambda: self._scheduler.extend(group, work), work.done)

    def leave(self, group: SequenceGroup) -> None:
        """Free a session's rows before the next step."""
        with self._wake:  # an engine that closes meanwhile has freed them
            if not self._closed:
                self._post(lambda: self._scheduler.close(group), Future())

    def close(self) -> None:
        """As ``Engine.close``: the engine stops stepping."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> Self:
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
        compute_as_engine(self._threads.count)
        while True:
            with self._wake:
                while not (self._arrivals or self._scheduler.ready or self._closed):
                    self._wake.wait()
                if self._closed:
                    break
                arrivals = list(self._arrivals)
                self._arrivals.clear()
            for arrive, waiting in arrivals:
                try:
                    arrive()
                except Exception as failure:  # its own caller's alone: caches that do not fit in memory, say
                    settle(waiting, as_memory_error(failure))
            try:
                if self._scheduler.ready:
                    self._choose_threads()
                    self._step()
            except Exception as failure:  # handed to every waiting caller: the loop serves those who come after
                self._scheduler.fail_all(failure)
        self._scheduler.fail_all(asyncio.CancelledError())
        for _, waiting in self._arrivals:
            settle(waiting, asyncio.CancelledError())

    def _choose_threads(self) -> None:
        """The number of threads decides the last bits of a step: in lockstep it stays the same."""
        if self._scheduler.awaited:
            count = self._threads.most
        else:
            self._threads.update()
            count = self._threads.count
        if count != torch.get_num_threads():
            compute_as_engine(count)

    def _step(self) -> None:
        groups, parts = self._scheduler.step()
        if groups:
            STEP_ROWS.observe(sum(group.count for group in groups))
        failed = self._run_apart(self.runner.draw, groups)
        runs: list[Run] = [*groups, *parts]
        self._run_apart(self._read, [run for run in runs if run not in failed])

    def _run_apart(self, compute: Callable[[list[Any]], None], runs: Sequence[Run]) -> list[Run]:
        """Those of ``runs`` that failed, and none of the others with them."""
        failures = run_apart(compute, runs)
        for run, failure in failures:
            self._scheduler.fail(run, as_memory_error(failure))
        return [run for run, _ in failures]

    def _read(self, runs: list[Run]) -> None:
        for run, (states, hidden) in zip(runs, self.runner.read(runs), strict=True):
            try:
                run.finish(states, hidden)
                self._scheduler.finish(run)
            except Exception as failure:  # the others are read: they go on
                self._scheduler.fail(run, as_memory_error(failure))


def prefill_budget(device: str, attention_span: float) -> PrefillBudget:
    """A step reads the weights in the time of some 20 tokens' arithmetic on a CPU, of 256 on a GPU."""
    step_units, max_units = (256, 2048) if device == "cuda" else (20, 256)
    return PrefillBudget(step_units, max_units, attention_span)


class EmbeddedSession:
    """A session of the embedded engine; see ``Session``."""

    def __init__(self, engine: EmbeddedEngine, group: SequenceGroup) -> None:
        self._engine, self._group = engine, group
        self._open = True
        self._asked: deque[ChunkWork] = deque()  # for chunks that are not awaited yet
        self._inner = {0: 0}  # row of the last chunk -> row of the batch; rows that stopped early are gone from it

    @property
    def cached_tokens(self) -> int:
        """As ``Session.cached_tokens``."""
        return self._group.cached_tokens

    async def extend(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> Chunk:
        """As ``Session.extend``. Long chunks go in parts: between parts, rows that have stopped leave the batch."""
        if not self._open:
            raise RuntimeError("the session is closed")
        room = self._engine.info.max_length - self._group.length
        if length > room:
            raise ValueError(f"{length} more tokens do not fit: the model has room for {room}")
        parts, live, successors = ChunkParts(), [self._inner[p] for p in parents], num_successors
        while (remaining_tokens := length - parts.length) > 0 and live:
            part_length = min(remaining_tokens, COMPACT)
            follows = remaining_tokens - part_length or (more if part_length == length else 0)
            parts.add(await self._extend(live, successors, part_length, follows))
            live, successors = parts.live, 1
        self._inner = parts.places
        return parts.chunk()

    async def _extend(self, parents: Sequence[int], num_successors: int, length: int, more: int) -> Chunk:
        """Other sessions' steps do not wait until this chunk is awaited and the next one asked for: a single row's are
        asked for ahead, and those that are drawn by now come along. Not in lockstep, where rows past the end of a text
        would share the steps of some runs."""
        if not self._asked:
            self._ask(ChunkWork(parents, num_successors, length))
        if len(parents) * num_successors == 1 and not self._engine.steps_together:
            more -= sum(work.length for work in self._asked) - length
            while more > 0 and len(self._asked) <= AHEAD:
                self._ask(ChunkWork([0], 1, min(length, more), follows=True))
                more -= length
        parts = ChunkParts()
        try:
            parts.add(await asyncio.wrap_future(self._asked.popleft().done))
            while parts.live and self._asked and self._asked[0].done.done():
                parts.add(self._asked.popleft().done.result())
        except BaseException:  # no chunk follows
            self._asked.clear()
            raise
        return parts.chunk()

    def _ask(self, work: ChunkWork) -> None:
        self._engine.extend(self._group, work)
        self._asked.append(work)

    def close(self) -> None:
        """As ``Session.close``."""
        if self._open:
            self._open = False
            self._engine.leave(self._group)
