"""How strongly values steer a method: chosen on the validation prompts of a piece, in the same way for every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.answers import DecodingMethod
from benchmarks.bench_tasks.piece import TUNING, Piece
from iro_server import JsonObject
from training.run import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from iro_server.decoding.base import Scorer, ScorerState
    from iro_server.engines.base import Chunk

STRENGTHS = (1.0, 4.0, 16.0, 64.0)
Build = Callable[[Piece, "Scorer | None", float], DecodingMethod]


@dataclass(frozen=True)
class ScaledValues:
    """``strength`` times the values of ``scorer``."""

    scorer: Scorer
    strength: float

    @property
    def layers(self) -> tuple[int, ...]:
        return self.scorer.layers

    def start(self, prompt_ids: Sequence[int]) -> ScaledState:
        return ScaledState(self.scorer.start(prompt_ids), self.strength)


@dataclass(frozen=True)
class ScaledState:
    state: ScorerState
    strength: float

    async def score(self, parents: Sequence[int], num_successors: int, chunk: Chunk) -> Tensor:
        return self.strength * await self.state.score(parents, num_successors, chunk)


def at_best_strength(piece: Piece, name: str, build: Build, rows: int = 1) -> DecodingMethod:
    """The method with the job's values at the one of ``STRENGTHS`` whose answers by ``rows`` rows have the highest mean
    reward on the piece's validation prompts. A step of the run keeps what was tried."""
    values = piece.trained.stack
    if values is None:
        return build(piece, None, 0.0)
    tuning = piece.step(f"{name}-strength", lambda: tuned(piece, name, build, rows))
    return build(piece, values, tuning["strength"])


def tuned(piece: Piece, name: str, build: Build, rows: int) -> JsonObject:
    """The chosen ``strength``, the mean reward of each one ``tried``, and what trying them took."""
    began, seed, tried = time.monotonic(), derive_seed(piece.seed, TUNING), []
    base_tokens = 0
    for strength in STRENGTHS:
        answers = build(piece, piece.trained.stack, strength).answers(piece.validation, rows, seed)
        rewards = piece.rewards(piece.validation, [piece.text(answer.tokens) for answer in answers])
        tried.append({"strength": strength, "reward": fmean(rewards)})
        base_tokens += sum(answer.base_tokens for answer in answers)
    return {
        "task": piece.task.name,
        "method": name,
        "seed": piece.seed,
        "rows": rows,
        "strength": max(tried, key=lambda trial: trial["reward"])["strength"],
        "tried": tried,
        "base_tokens": base_tokens,
        "reward_calls": len(STRENGTHS) * len(piece.validation),
        "seconds": time.monotonic() - began,
    }
