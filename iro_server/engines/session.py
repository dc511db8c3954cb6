"""One prompt's rows inside the embedded engine: their caches, their next-token states, their chunk in progress."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from iro_server.engines.attention import Segment, Softmax, attend_cache, attend_prompt, attend_segments
from iro_server.engines.base import Chunk, Sampling

Cache = tuple[torch.Tensor, torch.Tensor]


class ChunkWork:
    """A chunk being sampled: R rows, up to ``length`` tokens. The engine's thread alone touches it."""

    def __init__(self, parents: Sequence[int], successors: int, length: int) -> None:
        self.parents, self.successors, self.length = list(parents), successors, length
        self.rows = len(parents) * successors
        self.done: Future[Chunk] = Future()
        self.tokens: list[torch.Tensor] = []
        self.logprobs: list[torch.Tensor] = []
        self.hidden: list[dict[int, torch.Tensor]] = []
        self.lengths_R = torch.zeros(self.rows, dtype=torch.int64)
        self.stopped_R = torch.zeros(self.rows, dtype=torch.bool)

    def result(self) -> Chunk:
        layers = self.hidden[0].keys()
        return Chunk(
            tokens_RL=torch.stack(self.tokens, dim=1),
            logprobs_RL=torch.stack(self.logprobs, dim=1),
            lengths_R=self.lengths_R,
            stopped_R=self.stopped_R,
            hidden={i: torch.stack([h[i] for h in self.hidden], dim=1).float() for i in layers},
        )


class PromptRows:
    """The prompt's tokens, fed once."""

    def __init__(self, prompt_ids: Sequence[int], cache_shape: tuple[int, int, int], like: torch.Tensor) -> None:
        layers, kv_heads, size = cache_shape
        self.token_ids = torch.tensor(prompt_ids, device=like.device)
        self.positions = torch.arange(len(prompt_ids), device=like.device)
        self.count = len(prompt_ids)
        shape = (layers, 1, kv_heads, self.count, size)
        self.segment = Segment(like.new_empty(shape), like.new_empty(shape), self.count)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax: Softmax) -> torch.Tensor:
        self.segment.keys[layer, 0], self.segment.values[layer, 0] = k, v
        return attend_prompt(q, k, v, softmax)


class SessionRows:
    """All rows of one session, the ``number``-th opened. ``states``: final hidden states [rows, D] from which the next
    token is drawn."""

    def __init__(self, prompt: PromptRows, sampling: Sampling, layers: Sequence[int], seed: int, number: int) -> None:
        self.prompt, self.sampling, self.layers, self.number = prompt, sampling, tuple(layers), number
        self.generator = torch.Generator().manual_seed(seed)
        self.past: Segment | None = None
        self.chunk: Segment | None = None
        self.whole: Segment | None = None
        self.states: torch.Tensor | None = None
        self.successors = 1
        self.work: ChunkWork | None = None
        self.token_ids = torch.empty(0, dtype=torch.int64)
        self.count = 0

    @property
    def length(self) -> int:
        """Tokens each row holds, prompt included."""
        return self.prompt.count + sum(s.length for s in (self.past, self.chunk) if s)

    def begin(self, work: ChunkWork) -> None:
        """Keep only the parents' caches, and make room for their successors' chunk."""
        parents = torch.tensor(work.parents, device=self.prompt.segment.keys.device)
        assert self.states is not None
        self.states = self.states[parents]
        if self.chunk is not None:
            self.past = self._descend(parents)
        like = self.prompt.segment.keys
        layers, _, kv_heads, _, size = like.shape
        shape = (layers, work.rows, kv_heads, work.length, size)
        self.chunk = Segment(like.new_empty(shape), like.new_empty(shape), 0)
        self.whole = self._in_one_piece(self.chunk) if work.rows == 1 else None
        self.successors, self.work, self.count = work.successors, work, work.rows

    def _in_one_piece(self, chunk: Segment) -> Segment:
        """A lone row's segments put side by side in one, of which they become parts."""
        parts = [part for part in (self.prompt.segment, self.past, chunk) if part]
        keys, values = (torch.cat([getattr(part, kind) for part in parts], dim=3) for kind in ("keys", "values"))
        at = 0
        for part in parts:
            span = slice(at, at + part.keys.shape[3])
            part.keys, part.values, at = keys[:, :, :, span], values[:, :, :, span], span.stop
        return Segment(keys, values, self.length)

    def _descend(self, parents: torch.Tensor) -> Segment:
        old, new = self.past, self.chunk
        assert new is not None
        keys, values = new.keys[:, parents, :, : new.length], new.values[:, parents, :, : new.length]
        if old is not None:
            beams = parents // self.successors
            keys = torch.cat([old.keys[:, beams], keys], dim=3)
            values = torch.cat([old.values[:, beams], values], dim=3)
        return Segment(keys, values, keys.shape[3])

    def uniforms(self) -> torch.Tensor:
        """What its next tokens are drawn by: a row a state, a column each of its successors."""
        assert self.work is not None and self.states is not None
        beams = len(self.states)
        return torch.rand(beams, self.work.rows // beams, generator=self.generator, dtype=torch.float64)

    def drawn(self, tokens: torch.Tensor, logprobs: torch.Tensor) -> None:
        """Every row's next token and its log-probability, shaped as ``uniforms``."""
        work = self.work
        assert work is not None
        self.token_ids = tokens.flatten()
        work.tokens.append(self.token_ids.cpu())
        work.logprobs.append(logprobs.flatten().float().cpu())
        work.lengths_R += ~work.stopped_R
        if self.sampling.stop_ids:
            work.stopped_R |= torch.isin(work.tokens[-1], torch.tensor(self.sampling.stop_ids))

    @property
    def positions(self) -> torch.Tensor:
        return torch.full((self.count,), self.length, device=self.prompt.segment.keys.device)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax: Softmax) -> torch.Tensor:
        chunk = self.chunk
        assert chunk is not None
        chunk.keys[layer, :, :, chunk.length], chunk.values[layer, :, :, chunk.length] = (
            k.transpose(0, 1),
            v.transpose(0, 1),
        )
        if self.whole is not None:
            return attend_cache(q, Segment(self.whole.keys, self.whole.values, self.length + 1), layer, softmax)
        current = Segment(chunk.keys, chunk.values, chunk.length + 1)
        segments = [self.prompt.segment, self.past, current] if self.past else [self.prompt.segment, current]
        return attend_segments(q.transpose(0, 1).contiguous(), segments, layer, softmax)

    def fed(self, states: torch.Tensor, hidden: dict[int, torch.Tensor]) -> None:
        """The model has read the drawn tokens: ``states`` [R, D] final, ``hidden[layer]`` [R, D]."""
        assert self.work is not None and self.chunk is not None
        self.states = states
        self.chunk.length += 1
        self.work.hidden.append({i: hidden[i].cpu() for i in self.layers})

    @property
    def finished(self) -> bool:
        work = self.work
        return work is not None and (len(work.tokens) == work.length or bool(work.stopped_R.all()))
