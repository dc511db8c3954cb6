"""The rows that one session continues from its prompt: their caches, their next-token states, their chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from iro_server.engines.adjusted import AdjustedRows
from iro_server.engines.attention import Segment, Softmax, attend_cache, attend_segments
from iro_server.engines.base import HEAD_STATE, Alternatives, Chunk, Sampling
from iro_server.engines.cache import CONTIGUOUS_PROMPT, CacheSpec, append, select_owners, with_growth
from iro_server.engines.prefill import Prompt
from iro_server.engines.steering import SteeredRows


class ChunkWork:
    """A chunk being sampled: R rows, up to ``length`` tokens. ``follows``: it is drawn where the chunk before has not
    stopped, without being awaited. The engine's thread alone touches it."""

    def __init__(self, parents: Sequence[int], successors: int, length: int, follows: bool = False) -> None:
        self.parents, self.successors, self.length = list(parents), successors, length
        self.follows = follows
        self.rows = len(parents) * successors
        self.done: Future[Chunk] = Future()
        self.tokens: list[torch.Tensor] = []
        self.logprobs: list[torch.Tensor] = []
        self.hidden: list[dict[int, torch.Tensor]] = []
        self.head_states: list[torch.Tensor] = []
        self.log_ratios: list[torch.Tensor] = []
        self.kl: list[torch.Tensor] = []
        self.alternatives: list[list[Alternatives]] = []  # of each position, of each row
        self.lengths_R = torch.zeros(self.rows, dtype=torch.int64)
        self.stopped_R = torch.zeros(self.rows, dtype=torch.bool)

    def result(self) -> Chunk:
        layers = self.hidden[0].keys()
        hidden = {i: torch.stack([h[i] for h in self.hidden], dim=1).float() for i in layers}
        if self.head_states:
            hidden[HEAD_STATE] = torch.stack(self.head_states, dim=1).float()
        return Chunk(
            tokens_RL=torch.stack(self.tokens, dim=1),
            logprobs_RL=torch.stack(self.logprobs, dim=1),
            lengths_R=self.lengths_R,
            stopped_R=self.stopped_R,
            hidden=hidden,
            log_ratios_RL=torch.stack(self.log_ratios, dim=1) if self.log_ratios else None,
            kl_RL=torch.stack(self.kl, dim=1) if self.kl else None,
            alternatives=[list(row) for row in zip(*self.alternatives, strict=True)] if self.alternatives else None,
        )


class SequenceGroup:
    """All rows of the ``number``-th session; they are of one length. A step draws each row's next token, then the model
    reads it.

    ``past``: keys and values since the prompt, an owner a beam. Where each beam has one successor, its tokens are
    appended there; where it has several, theirs go to ``chunk``, an owner a row.
    ``states`` [beams, D], after the chunk's first token [rows, D]: final hidden states that the next token is drawn
    from. None before the prompt is read and after the session is closed.
    """

    prompt: Prompt

    def __init__(
        self,
        spec: CacheSpec,
        sampling: Sampling,
        layers: Sequence[int],
        seed: int,
        number: int,
        steered: SteeredRows | None = None,
        adjusted: AdjustedRows | None = None,
    ) -> None:
        self.spec, self.sampling, self.number = spec, sampling, number
        self.steered, self.adjusted = steered, adjusted
        self.layers = tuple(layer for layer in layers if layer != HEAD_STATE)
        self.keeps_head_states = HEAD_STATE in layers
        self.generator = torch.Generator().manual_seed(seed)
        self.past = spec.allocate(1, 0)
        self.past_has_prompt = False
        self.chunk: Segment | None = None
        self.states: torch.Tensor | None = None
        self.successors = 1
        self.work: ChunkWork | None = None
        self.upcoming: deque[ChunkWork] = deque()  # chunks that follow ``work``
        self.stopped = False  # all rows, in the last chunk
        self.count = 1
        self.cached_tokens = 0  # of the prompt, read for other sessions before
        self.token_ids = torch.empty(0, dtype=torch.int64)
        self.segments: list[Segment] | None = None  # what the drawn tokens attend to; None: none is drawn
        self._uniforms: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens each row holds, prompt included."""
        generated = self.past.length + (self.chunk.length if self.chunk else 0)
        return generated if self.past_has_prompt else self.prompt.count + generated

    def begin(self, work: ChunkWork) -> None:
        """Keep the parents' caches alone, and make room for the chunk of their successors."""
        if self.states is None:
            raise RuntimeError("the session is closed")
        appended = work.length if work.successors == 1 else 0
        self._keep(work.parents, appended)
        self.states = self.states[work.parents]
        if self.steered:
            self.steered.select(work.parents)
        if self.adjusted:
            self.adjusted.select(work.parents)
        self.chunk = None if work.successors == 1 else self.spec.allocate(work.rows, work.length)
        self.successors, self.work, self.count = work.successors, work, work.rows

    def _keep(self, parents: list[int], appended: int) -> None:
        beams = [parent // self.successors for parent in parents]
        added = appended + (self.chunk.length if self.chunk else 0)
        is_lone = len(parents) == 1 and appended > 0 and self.prompt.count <= CONTIGUOUS_PROMPT
        if is_lone and not self.past_has_prompt:
            joined = self.spec.allocate(1, with_growth(self.prompt.count + self.past.length + added))
            append(joined, self.prompt.segment, [0])
            append(joined, self.past, beams)
            self.past, self.past_has_prompt = joined, True
        else:
            start = self.prompt.count if self.past_has_prompt and len(parents) > 1 else 0
            self.past = select_owners(self.spec, self.past, beams, self.past.length - start + added, start)
            self.past_has_prompt = self.past_has_prompt and not start
        if self.chunk:
            append(self.past, self.chunk, parents)

    def free(self) -> None:
        """Drop the caches and the prompt: the session is closed."""
        self.work = None
        self.upcoming.clear()
        self.past, self.chunk, self.segments, self.states = self.spec.allocate(1, 0), None, None, None
        del self.prompt

    @property
    def uniforms(self) -> torch.Tensor:
        """What the next tokens are drawn by [beams, successors], the same until they are: a step may be tried again."""
        if self._uniforms is None:
            assert self.work is not None and self.states is not None
            beams = len(self.states)
            shape = beams, self.work.rows // beams
            self._uniforms = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return self._uniforms

    def take(
        self,
        tokens: torch.Tensor,
        logprobs: torch.Tensor,
        log_ratios: torch.Tensor | None = None,
        kl: torch.Tensor | None = None,
        alternatives: list[Alternatives] | None = None,
    ) -> None:
        """Every row's next token, its log-probability and log q/pi_0, shaped as ``uniforms``, and each beam's KL and
        likeliest tokens. SchemaRefused as ``AdjustedRows.take``."""
        work = self.work
        assert work is not None and self.states is not None
        successors = tokens.shape[1]
        # All that may find no memory comes before what keeps a trace: a step that fails so is taken again.
        token_ids, cpu_ids, cpu_logprobs = tokens.flatten(), tokens.flatten().cpu(), logprobs.flatten().float().cpu()
        stops = torch.isin(cpu_ids, torch.tensor(self.sampling.stop_ids, dtype=torch.int64))
        head_states = self.states.cpu().repeat_interleave(successors, dim=0) if self.keeps_head_states else None
        cpu_ratios = None if log_ratios is None else log_ratios.flatten().float().cpu()
        cpu_kl = None if kl is None else kl.float().cpu().repeat_interleave(successors)
        if self.adjusted:
            self.adjusted.take(tokens.tolist())
        if alternatives is not None:
            work.alternatives.append([row for row in alternatives for _ in range(successors)])
        if head_states is not None:
            work.head_states.append(head_states)
        if self.steered and cpu_ratios is not None and cpu_kl is not None and kl is not None:
            work.log_ratios.append(cpu_ratios)
            work.kl.append(cpu_kl)
            self.steered.take(tokens.tolist(), kl)
        self.token_ids, self._uniforms = token_ids, None
        work.tokens.append(cpu_ids)
        work.logprobs.append(cpu_logprobs)
        work.lengths_R += ~work.stopped_R
        work.stopped_R |= stops
        last = self.chunk or self.past
        grown = Segment(last.keys, last.values, last.length + 1)
        shared = [] if self.past_has_prompt else [self.prompt.segment]
        self.segments = [*shared, self.past, grown] if self.chunk else [*shared, grown]

    @property
    def positions(self) -> torch.Tensor:
        return torch.full((self.count,), self.length, device=self.spec.device)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax: Softmax) -> torch.Tensor:
        assert self.segments is not None
        last = self.segments[-1]
        position = last.length - 1
        last.keys[layer, :, :, position], last.values[layer, :, :, position] = k.transpose(0, 1), v.transpose(0, 1)
        if self.count == 1 and len(self.segments) == 1:
            return attend_cache(q, last, layer, softmax)
        return attend_segments(q.transpose(0, 1).contiguous(), self.segments, layer, softmax)

    def finish(self, states: torch.Tensor, hidden: dict[int, torch.Tensor]) -> None:
        """The model has read the drawn tokens: ``states`` [R, D] final, ``hidden[layer]`` [R, D]."""
        assert self.work is not None
        self.work.hidden.append({i: hidden[i].cpu() for i in self.layers})
        self.states, self.segments = states, None
        (self.chunk or self.past).length += 1

    @property
    def finished(self) -> bool:
        work = self.work
        return work is not None and (len(work.tokens) == work.length or bool(work.stopped_R.all()))
