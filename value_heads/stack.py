"""Sum_t V_t / beta_t: the value functions of all iterations, as the score of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from value_heads.features import TOKENS, Sums, assemble, features, last_states, union
from value_heads.heads import Head, LinearHead, MLPHead, fold
from value_heads.tilt import Tilt


class Chunk(Protocol):
    """New tokens of R rows, as the engine reports them (hidden[layer]: [R, L, D])."""

    tokens_RL: Tensor
    lengths_R: Tensor
    hidden: dict[int, Tensor]


class ValueStack:
    """pi_T ∝ pi_base · exp(Sum_t V_t / beta_t) (iro.md). Linear heads fold into one: the cost does not grow with T.

    heads[t] is iteration t's value function, betas[t] > 0 its temperature. ``tilt``: what they add to the frozen
    model's logits, if anything.
    """

    def __init__(self, heads: Sequence[Head], betas: Sequence[float], tilt: Tilt | None = None):
        self.tilt = tilt
        check_betas(betas, len(heads))
        self.heads, self.betas = tuple(heads), tuple(betas)
        self.spec = union([head.spec for head in heads])
        linear = [(head, beta) for head, beta in zip(heads, betas, strict=True) if isinstance(head, LinearHead)]
        self.folded = self._fold(linear) if linear else None
        self.mlps = [(head.eval(), b) for head, b in zip(heads, betas, strict=True) if isinstance(head, MLPHead)]

    @staticmethod
    def _fold(linear: list[tuple[LinearHead, float]]) -> LinearHead:
        heads = [head for head, _ in linear]
        return fold(heads, [beta for _, beta in linear], union([head.spec for head in heads]))

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden layers wanted from the engine."""
        return self.spec.layers

    def with_betas(self, betas: Sequence[float]) -> ValueStack:
        return ValueStack(self.heads, betas, self.tilt)

    def with_tilt(self, tilt: Tilt | None) -> ValueStack:
        return ValueStack(self.heads, self.betas, tilt)

    def terms(self) -> list[tuple[Head, float]]:
        """The heads to evaluate with their betas: the folded linear head (beta 1), then each MLP."""
        folded: list[tuple[Head, float]] = [(self.folded, 1.0)] if self.folded else []
        return folded + [(head, beta) for head, beta in self.mlps]

    @torch.no_grad()
    def values(self, hidden: dict[int, Tensor]) -> Tensor:
        """Sum_t V_t / beta_t [R, L] at every token of whole responses; ``hidden`` as ``features`` takes it."""
        return torch.stack([head(features(head.spec, hidden)) / beta for head, beta in self.terms()]).sum(0)

    def token_values(self, tokens: Sequence[int], hidden: Mapping[int, Tensor]) -> list[float]:
        """What each token of one response adds to Sum_t V_t / beta_t, the first with the value of any start: they sum
        to the response's value. ``hidden[layer]``: [T, D] at its tokens."""
        states = {layer: states_TD[None] for layer, states_TD in hidden.items()}
        values_T = self.values({**states, TOKENS: torch.tensor([list(tokens)])})[0]
        increments: list[float] = values_T.diff(prepend=torch.zeros(1)).tolist()
        return increments

    def start(self, prompt_ids: Sequence[int]) -> StackState:
        return StackState(self)


class StackState:
    """The running feature sums of one search's rows."""

    def __init__(self, stack: ValueStack):
        self.stack = stack
        self.sums: Sums | None = None
        self.start_R = torch.zeros(1, dtype=torch.long)

    async def score(self, parents: Sequence[int], num_successors: int, chunk: Chunk) -> Tensor:
        """Sum_t V_t / beta_t [R] at each row's last counted token; rows parent-major, a stopped row no parent."""
        stack = self.stack
        parent_R = torch.as_tensor(parents).repeat_interleave(num_successors)
        with torch.no_grad():
            sums = self.sums and {key: sum_RD[parent_R] for key, sum_RD in self.sums.items()}
            states, self.sums, t_R = last_states(
                stack.spec,
                sums,
                {**chunk.hidden, TOKENS: chunk.tokens_RL},
                chunk.lengths_R,
                self.start_R[parent_R].to(chunk.lengths_R.device),
            )
            self.start_R = t_R.cpu()
            terms = [head(assemble(head.spec, states, self.sums, t_R)) / beta for head, beta in stack.terms()]
            return torch.stack(terms).sum(0)


def check_betas(betas: Sequence[float], count: int) -> None:
    if count == 0:
        raise ValueError("a stack holds at least one value function")
    if len(betas) != count:
        raise ValueError(f"{count} value functions need {count} betas, got {len(betas)}")
    if not all(beta > 0 for beta in betas):
        raise ValueError(f"betas must be positive, got {list(betas)}")
