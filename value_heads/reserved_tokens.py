"""Numbers of the output head's state, read as the logits of tokens that are never drawn.

A server that reports log-probabilities of chosen tokens, and takes an adapter of its output head, reports <w_k, s> of
the state s without a change of its own: the adapter makes the logit of a reserved token a_k that of a reference token
b plus size_k <w_k, s>. Axes in tensor names: V vocabulary, D width, r rank, K numbers, N states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from value_heads.tilt_export import HeadAdapter


@dataclass(frozen=True)
class ReservedTokens:
    """``ids``: a token for each number. ``size``: what multiplies the numbers, so that they differ by a few nats."""

    reference: int
    ids: tuple[int, ...]
    size: float

    @property
    def all(self) -> tuple[int, ...]:
        return (self.reference, *self.ids)

    def numbers(self, logprobs: Sequence[float]) -> list[float]:
        """<w_k, s>, from the log-probabilities of ``all``."""
        reference, *of_ids = logprobs
        return [(logprob - reference) / self.size for logprob in of_ids]

    @staticmethod
    def without_reserved(logprob: float, logprobs: Sequence[float]) -> float:
        """The log-probability of another token among all that may be drawn."""
        return logprob - math.log1p(-min(sum(map(math.exp, logprobs)), 1 - 1e-12))


def with_reserved(adapter: HeadAdapter, reserved: ReservedTokens, rows_KD: Tensor, head_VD: Tensor) -> HeadAdapter:
    """``adapter``, which leaves the reserved tokens alone, with a rank more for each of the rows w_k."""
    head_VD = head_VD.float()
    lora_A = reserved.size * rows_KD + head_VD[reserved.reference] - head_VD[list(reserved.ids)]
    columns = torch.zeros(len(head_VD), len(reserved.ids))
    columns[list(reserved.ids), torch.arange(len(reserved.ids))] = 1.0
    of_adapter, static = adapter.lora_B.clone(), adapter.static.clone()
    of_adapter[list(reserved.all)] = 0.0
    static[list(reserved.all)] = 0.0
    return HeadAdapter(torch.cat([adapter.lora_A, lora_A]), torch.cat([of_adapter, columns], 1), static)
