"""Twisted sequential Monte Carlo (arXiv:2404.17546) by the server's search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.answers import Answer, answer_of
from benchmarks.bench_tasks.piece import Piece
from benchmarks.bench_tasks.strengths import ScaledValues

if TYPE_CHECKING:
    from iro_server.decoding.base import Scorer
    from training.iro.data import Prompt


@dataclass(frozen=True)
class Smc:
    """``rows`` particles, extended by the frozen model, with the twist psi(s) = exp(w V(s)).

    A chunk from s to s' multiplies a particle's weight by psi(s') / psi(s); where the effective sample size
    (sum w)^2 / sum w^2 is below half of the particles they are resampled. One particle is picked, which is a draw from
    pi_0 exp(w V) as their number grows.
    """

    piece: Piece
    values: Scorer | None
    strength: float

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        from iro_server.decoding.base import SearchParams

        params = SearchParams(
            beam_width=rows, num_successors=1, chunk_length=self.piece.config.chunk_length, selection="smc"
        )
        twist = ScaledValues(self.values, self.strength) if self.values else None
        return [answer_of(result.finals[0], result) for result in self.piece.search(prompts, params, twist, seed)]
