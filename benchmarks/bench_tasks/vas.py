"""Value-augmented sampling (arXiv:2405.06639)."""

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
class Vas:
    """The next token is drawn from q(a|s) ∝ pi_0(a|s) exp(V(s.a) / beta) over the k likeliest a; w = 1 / beta."""

    piece: Piece
    values: Scorer | None
    strength: float

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        return TokenValues(self.piece, self.values, self.strength, softmax).answers(prompts, seed)


def softmax(scores_K: Tensor) -> Tensor:
    """[K]."""
    return scores_K.softmax(0)
