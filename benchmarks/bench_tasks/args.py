"""ARGS, alignment as reward-guided search (arXiv:2402.01694), with the values that the job fitted as its reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.answers import Answer
from benchmarks.bench_tasks.piece import Piece
from benchmarks.bench_tasks.token_values import TokenValues

if TYPE_CHECKING:
    from torch import Tensor

    from iro_server.decoding.base import Scorer
    from training.iro.data import Prompt


@dataclass(frozen=True)
class Args:
    """Greedy ARGS: the next token is argmax over the k likeliest a of log pi_0(a|s) + w V(s.a)."""

    piece: Piece
    values: Scorer | None
    strength: float

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        return TokenValues(self.piece, self.values, self.strength, likeliest).answers(prompts, seed)


def likeliest(scores_K: Tensor) -> Tensor:
    """All probability at the highest score, [K]."""
    from torch.nn.functional import one_hot

    return one_hot(scores_K.argmax(), len(scores_K)).double()
