"""A language model small enough to enumerate, and value functions given as plain functions of the tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from iro_server.engines.base import Chunk, EngineHealth, ModelInfo, Sampling, Steering

VOCABULARY = 4
END = 3  # the stop token


def next_probs(tokens: Sequence[int]) -> torch.Tensor:
    """The toy model: a distribution over 4 tokens that depends on the last two tokens and the length."""
    state = (sum((t + 1) * (i + 2) for i, t in enumerate(tokens[-2:])) + len(tokens)) % 7
    logits = torch.tensor([math.sin(1.3 * state + 2.1 * v) for v in range(VOCABULARY)])
    logits[END] -= 1.0
    return torch.softmax(logits, dim=-1)


def tilted_probs(tokens: Sequence[int], steering: Any | None) -> torch.Tensor:
    """q(a|s) = pi(a|s) exp(strength A(s,a)) / Z(s)."""
    if steering is None:
        return next_probs(tokens)
    return torch.softmax(next_probs(tokens).log() + steering.strength * steering.tilt(tuple(tokens)), dim=-1)


def enumerate_completions(prompt: Sequence[int], max_tokens: int) -> dict[tuple[int, ...], float]:
    """Every completion and its exact probability."""
    found = {}
    for length in range(1, max_tokens + 1):
        for body in itertools.product(range(VOCABULARY), repeat=length):
            if END in body[:-1] or (length < max_tokens and body[-1] != END):
                continue
            seq, p = list(prompt), 1.0
            for t in body:
                p *= float(next_probs(seq)[t])
                seq.append(t)
            found[body] = p
    return found


class ToyEngine:
    """The Engine protocol over ``next_probs``. Hidden layer 0 is the one-hot token."""

    tokenizer: Any = None  # its prompts are token ids
    info = ModelInfo("toy", "toy-hash", "toy-template", (END,), 1, VOCABULARY, 4096)

    def __init__(self) -> None:
        self.sampled = 0

    async def open(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        layers: Sequence[int] = (),
        steering: Steering | None = None,
        head_rows: torch.Tensor | None = None,
    ) -> ToySession:
        if not 0 < len(prompt_ids) < self.info.max_length:
            raise ValueError(f"the prompt has {len(prompt_ids)} tokens")
        return ToySession(self, list(prompt_ids), sampling, tuple(layers), steering)

    def lockstep(self, sessions: int) -> AbstractContextManager[None]:
        return nullcontext()  # its rows share nothing

    def health(self) -> EngineHealth:
        return EngineHealth()

    def close(self) -> None:
        pass


class ToySession:
    """Steered, its tilt is a function of a row's tokens: A(s, .) [VOCABULARY]."""

    cached_tokens = 0

    def __init__(
        self,
        engine: ToyEngine,
        prompt: list[int],
        sampling: Sampling,
        layers: tuple[int, ...],
        steering: Any | None = None,
    ) -> None:
        self.engine, self.sampling, self.layers, self.steering = engine, sampling, layers, steering
        self.rows = [prompt]
        self.generator = torch.Generator()
        self.generator.manual_seed(sampling.seed) if sampling.seed is not None else self.generator.seed()

    async def extend(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> Chunk:
        self.rows = [list(self.rows[p]) for p in parents for _ in range(num_successors)]
        count = len(self.rows)
        tokens = torch.zeros(count, length, dtype=torch.int64)
        logprobs, log_ratios, kl = (torch.zeros(count, length) for _ in range(3))
        lengths, stopped = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        for r, row in enumerate(self.rows):
            for t in range(length):
                p = next_probs(row)
                q = tilted_probs(row, self.steering)
                if self.sampling.likeliest:
                    token = int(q.argsort(descending=True)[r % num_successors if t == 0 else 0])
                else:
                    token = int(torch.multinomial(q, 1, generator=self.generator))
                row.append(token)
                tokens[r, t], logprobs[r, t] = token, p[token].log()
                log_ratios[r, t], kl[r, t] = (q / p)[token].log(), (q * (q / p).log()).sum()
                lengths[r] += 1
                self.engine.sampled += 1
                if token in self.sampling.stop_ids:
                    stopped[r] = True
                    break
        one_hot = torch.nn.functional.one_hot(tokens, VOCABULARY).float()
        steered = (log_ratios, kl) if self.steering else (None, None)
        return Chunk(tokens, logprobs, lengths, stopped, {i: one_hot for i in self.layers}, *steered)

    def close(self) -> None:
        pass


class ToyScorer:
    """sum_t V_t / beta_t given as a function of the completion's tokens so far."""

    layers: tuple[int, ...] = ()

    def __init__(self, value: Callable[[tuple[int, ...]], float]) -> None:
        self.value = value

    def start(self, prompt_ids: Sequence[int]) -> ToyScorerState:
        return ToyScorerState(self.value)


class ToyScorerState:
    def __init__(self, value: Callable[[tuple[int, ...]], float]) -> None:
        self.value = value
        self.rows: list[tuple[int, ...]] = [()]

    async def score(self, parents: Sequence[int], num_successors: int, chunk: Chunk) -> torch.Tensor:
        tokens = [row[:n] for row, n in zip(chunk.tokens_RL.tolist(), chunk.lengths_R.tolist(), strict=True)]
        heads = [self.rows[p] for p in parents for _ in range(num_successors)]
        self.rows = [h + tuple(t) for h, t in zip(heads, tokens, strict=True)]
        return torch.tensor([self.value(r) for r in self.rows], dtype=torch.float64)
