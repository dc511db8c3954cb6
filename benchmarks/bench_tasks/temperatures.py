"""The temperature that a rival samples at: chosen on the validation prompts of a piece, as an alignment job chooses how
sharp its tilt is, from the same temperatures and inside the same limits of its text."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.answers import Answer, answer_of, best_of, picked_by_reward
from benchmarks.bench_tasks.piece import TUNING, Piece, text_limits
from iro_server import JsonObject
from training.run import derive_seed

if TYPE_CHECKING:
    from training.iro.data import Prompt
    from training.iro.tilt_trials import Trial
    from value_heads.tilt import Tilt

SAMPLES = 16  # of each validation prompt and temperature


@dataclass(frozen=True)
class TiltedSamples:
    """Independent samples steered by ``tilt``, and that of the highest reward where there are several."""

    piece: Piece
    tilt: Tilt | None

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        params = best_of(rows).model_copy(update={"strength": 1.0})
        results = self.piece.search(prompts, params, None, seed, self.tilt)
        if rows > 1:
            return picked_by_reward(self.piece, prompts, results)
        return [answer_of(result.finals[0], result, kl=result.finals[0].kl) for result in results]


@dataclass(frozen=True)
class Tempered:
    """``TiltedSamples`` at the temperature whose pick among as many rows has the highest reward on validation prompts.

    ``name``: of the step of the run that keeps what was tried. At temperature 1 where the rewards of the piece's job
    were all equal.
    """

    piece: Piece
    name: str
    tilt: Tilt | None

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        from value_heads.tilt import sharpened

        if self.tilt is None or self.piece.trained.stack is None:
            return TiltedSamples(self.piece, None).answers(prompts, rows, seed)
        sharpness = self.sharpness(rows)
        return TiltedSamples(self.piece, sharpened(self.tilt, sharpness)).answers(prompts, rows, seed)

    def sharpness(self, rows: int) -> float:
        tried = self.piece.step(f"{self.name}-temperatures", self.tune)["tried"]
        usual = [trial for trial in tried if trial["usual"]] or tried[:1]
        return float(max(usual, key=lambda trial: pick_of(trial["rewards"], rows))["sharpness"])

    def tune(self) -> JsonObject:
        """Of each temperature that was ``tried``: ``rewards`` of every prompt's samples, and whether the text is inside
        the limits of the job's tilts (``usual``)."""
        from training.iro.tilt_trials import SHARPNESS
        from value_heads.tilt import sharpened

        began, piece = time.monotonic(), self.piece
        limits, tried, base_tokens = text_limits(piece.trained.folder), [], 0
        assert self.tilt is not None
        for sharpness in (0.0, *SHARPNESS):
            trial, tokens = trial_of(piece, sharpened(self.tilt, sharpness), sharpness=sharpness)
            rewards = [row["rewards"] for row in trial.rows]
            tried.append({"sharpness": sharpness, "rewards": rewards, "usual": limits.allow(trial)})
            base_tokens += tokens
        return {
            "task": piece.task.name,
            "method": self.name,
            "seed": piece.seed,
            "tried": tried,
            "base_tokens": base_tokens,
            "reward_calls": len(tried) * SAMPLES * len(piece.validation),
            "seconds": time.monotonic() - began,
        }


def trial_of(piece: Piece, tilt: Tilt, strength: float = 1.0, sharpness: float = 0.0) -> tuple[Trial, int]:
    """Samples of the validation prompts by ``tilt``, which has the strength and sharpness already; and the base tokens
    that they took."""
    from training.iro.over_optimization import measures
    from training.iro.tilt_trials import Trial

    params = best_of(SAMPLES).model_copy(update={"strength": 1.0})
    results = piece.search(piece.validation, params, None, derive_seed(piece.seed, TUNING), tilt)
    rows = []
    for prompt, result in zip(piece.validation, results, strict=True):
        finals = result.finals
        rewards = piece.rewards([prompt] * len(finals), [piece.text(final.tokens) for final in finals])
        logprobs = [math.fsum(final.logprobs) for final in finals]
        rows.append(
            {
                "mean": fmean(rewards),
                "rewards": rewards,
                "logprob": sum(logprobs),
                "tokens": sum(len(final.tokens) for final in finals),
                "completions": [measures(final.tokens, each) for final, each in zip(finals, logprobs, strict=True)],
            }
        )
    return Trial("bias", strength, rows, sharpness), sum(result.usage.base_tokens for result in results)


def pick_of(rewards: Sequence[Sequence[float]], rows: int) -> float:
    """Mean reward of the grader's pick among ``rows`` samples, over disjoint groups of each prompt's samples."""
    size = min(rows, len(rewards[0]))
    return fmean(
        max(of_prompt[start : start + size])
        for of_prompt in rewards
        for start in range(0, len(of_prompt) - size + 1, size)
    )
