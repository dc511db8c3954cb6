"""Sum_t V_t / beta_t: the value functions of all iterations, as the score of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from value_heads.features import HEAD_STATE, TOKENS, Sums, assemble, features, last_states, sums_of, union
from value_heads.heads import Head, LinearHead, MLPHead, feature_places, fold
from value_heads.tilt import Tilt

TOKENS_AT_ONCE = 1024  # whose features are in memory


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
        self.linear = [(head, b) for head, b in zip(heads, betas, strict=True) if isinstance(head, LinearHead)]
        self.folded = self._fold(self.linear) if self.linear else None
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

    def projected(self) -> tuple[ValueStack, Tensor]:
        """The rows w_k [K, D], of length 1, through which linear heads read HEAD_STATE, and an equal stack that reads,
        in its place, the numbers <w_k, s> of a state s, followed by zeros. The rows of one head depend on no beta.

        ValueError where an MLP reads HEAD_STATE, of which no few numbers are enough.
        """
        if any(HEAD_STATE in head.spec.layers for head, _ in self.mlps):
            raise ValueError("a value function of the kind mlp reads the output head's whole state")
        if self.folded is None or HEAD_STATE not in self.folded.spec.layers:
            raise ValueError("no value function reads the output head's state")
        head, beta = self.linear[0] if len(self.linear) == 1 else (self.folded, 1.0)
        weight = head.weight.clone()
        places = [place for block, place in feature_places(head.spec, len(weight)).items() if block.layer == HEAD_STATE]
        places = [place for place in places if weight[place].any()] or places[:1]
        rows_KD = torch.stack([weight[place].double() for place in places])
        lengths_K = rows_KD.norm(dim=1)
        for number, place in enumerate(places):
            weight[place] = 0.0
            weight[place[number]] = lengths_K[number].float()
        heads, betas = [mlp for mlp, _ in self.mlps], [beta for _, beta in self.mlps]
        stack = ValueStack([LinearHead(head.spec, weight, head.bias), *heads], [beta, *betas], self.tilt)
        return stack, (rows_KD / lengths_K.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).float()

    @torch.no_grad()
    def values(self, hidden: dict[int, Tensor]) -> Tensor:
        """Sum_t V_t / beta_t [R, L] at every token of whole responses; ``hidden`` as ``features`` takes it."""
        return torch.stack([head(features(head.spec, hidden)) / beta for head, beta in self.terms()]).sum(0)

    @property
    def decomposes(self) -> bool:
        """Whether its value is a sum of shares of tokens: that of linear heads is."""
        return not self.mlps

    def start_tokens(self) -> TokenValues:
        """The share of each token in the values of one search's rows."""
        return TokenValues(self)

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
            terms = []
            for head, beta in stack.terms():
                sums = sums_of(head.spec, stack.spec, self.sums)
                terms.append(head(assemble(head.spec, states, sums, t_R)) / beta)
            return torch.stack(terms).sum(0)


class TokenValues:
    """What each token of a search's rows adds to Sum_t V_t / beta_t, the first with the value of any start: the shares
    of a row sum to its value. Holds sums and values of the last tokens, and no states."""

    def __init__(self, stack: ValueStack):
        self.stack = stack
        self.sums: Sums | None = None
        self.start_R = torch.zeros(1, dtype=torch.long)
        self.value_R = torch.zeros(1)

    @torch.no_grad()
    def shares(self, parents: Sequence[int], num_successors: int, chunk: Chunk) -> Tensor:
        """[R, L] of the chunk's tokens; rows parent-major, a stopped row no parent. Padding is meaningless."""
        spec, hidden = self.stack.spec, {**chunk.hidden, TOKENS: chunk.tokens_RL}
        parent_R = torch.as_tensor(parents).repeat_interleave(num_successors)
        carried = self.sums and {key: sum_RD[parent_R] for key, sum_RD in self.sums.items()}
        start_R, before_R = self.start_R[parent_R], self.value_R[parent_R]
        at_once = max(1, TOKENS_AT_ONCE // chunk.tokens_RL.shape[1])
        parts = torch.arange(len(parent_R)).split(at_once)
        values_RL = torch.cat([self._values(hidden, carried, start_R, rows) for rows in parts]).cpu()
        _, self.sums, t_R = last_states(spec, carried, hidden, chunk.lengths_R, start_R.to(chunk.lengths_R.device))
        self.start_R = t_R.cpu()
        self.value_R = values_RL.gather(1, chunk.lengths_R.cpu()[:, None] - 1)[:, 0]
        return torch.cat([before_R[:, None], values_RL], 1).diff(dim=1)

    def _values(self, hidden: dict[int, Tensor], carried: Sums | None, start_R: Tensor, rows: Tensor) -> Tensor:
        """[rows, L]."""
        states = {layer: states_RLD[rows] for layer, states_RLD in hidden.items()}
        sums = carried and {key: sum_RD[rows] for key, sum_RD in carried.items()}
        terms = [head(features(head.spec, states, sums, start_R[rows])) / beta for head, beta in self.stack.terms()]
        return torch.stack(terms).sum(0)


def check_betas(betas: Sequence[float], count: int) -> None:
    if count == 0:
        raise ValueError("a stack holds at least one value function")
    if len(betas) != count:
        raise ValueError(f"{count} value functions need {count} betas, got {len(betas)}")
    if not all(beta > 0 for beta in betas):
        raise ValueError(f"betas must be positive, got {list(betas)}")
