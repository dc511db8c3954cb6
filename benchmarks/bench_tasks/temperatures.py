"""The temperature and the repetition penalty that a rival samples at: chosen on the validation prompts of a piece, as
an alignment job chooses those of its tilt, from the same ones and inside the same limits of its text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.answers import Answer, answer_of, best_of, picked_by_reward
from benchmarks.bench_tasks.piece import TUNING, Piece, text_limits
from iro_server import JsonObject
from training.run import derive_seed

if TYPE_CHECKING:
    from training.iro.data import Prompt
    from training.iro.tilt_trials import Limits, Trial
    from value_heads.tilt import Tilt

SAMPLES = 16  # of each validation prompt and temperature


@dataclass(frozen=True)
class TiltedSamples:
    """Independent samples steered by ``tilt``, and that of the highest reward where there are several."""

    piece: Piece
    tilt: Tilt | None
    strength: float = 1.0

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        params = best_of(rows).model_copy(update={"strength": self.strength})
        results = self.piece.search(prompts, params, None, seed, self.tilt)
        if rows > 1:
            return picked_by_reward(self.piece, prompts, results)
        return [answer_of(result.finals[0], result, kl=result.finals[0].kl) for result in results]


@dataclass(frozen=True)
class Tempered:
    """``TiltedSamples`` of one of ``tilts``, at the temperature and with the repetition penalty whose pick among as
    many rows has the highest reward on validation prompts (``tuning``, as ``tune`` returns it; None: the frozen model's
    samples)."""

    piece: Piece
    tilts: Sequence[Tilt]
    tuning: JsonObject | None

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        return TiltedSamples(self.piece, self.tuned(rows)).answers(prompts, rows, seed)

    def tuned(self, rows: int) -> Tilt | None:
        """The best setting for so many rows."""
        if self.tuning is None:
            return None
        best = chosen(self.tuning, rows)
        return at_setting(self.tilts[best["tilt"]], best["sharpness"], best["penalty"])


def tempered(piece: Piece, name: str, tilts: Sequence[Tilt]) -> Tempered:
    """Tuned on the piece's validation prompts, unless the rewards of its job were all equal. A step of the run, by the
    method's ``name``, keeps what was tried."""
    if not tilts or piece.trained.stack is None:
        return Tempered(piece, tilts, None)
    return Tempered(piece, tilts, piece.step(f"{name}-temperatures", partial(tune, piece, name, tilts)))


def tune(piece: Piece, name: str, tilts: Sequence[Tilt]) -> JsonObject:
    """Of each setting that was ``tried``: ``rewards`` of every prompt's samples, and whether the text is inside the
    limits of the job's tilts (``usual``)."""
    from training.iro.trials import SHARPNESS

    began, limits = time.monotonic(), text_limits(piece, piece.trained.folder)
    tried = []
    for number, tilt in enumerate(tilts):

        def trial(set_tilt: Tilt, sharpness: float, penalty: float) -> tuple[Trial, int]:
            return trial_of(piece, set_tilt, sharpness=sharpness, penalty=penalty)

        tried += [{"tilt": number} | setting for setting in settings_of(tilt, trial, limits, (0.0, *SHARPNESS))]
    return tuning_of(piece, name, tried, time.monotonic() - began)


def tuning_of(piece: Piece, name: str, tried: Sequence[JsonObject], seconds: float) -> JsonObject:
    """What a step of the run keeps of the settings that were tried."""
    return {
        "task": piece.task.name,
        "method": name,
        "seed": piece.seed,
        "tried": [{key: value for key, value in setting.items() if key != "base_tokens"} for setting in tried],
        "base_tokens": sum(setting["base_tokens"] for setting in tried),
        "reward_calls": len(tried) * SAMPLES * len(piece.validation),
        "seconds": seconds,
    }


def settings_of(
    tilt: Tilt,
    trial_at: Callable[[Tilt, float, float], tuple[Trial, int]],
    limits: Limits,
    levels: Sequence[float],
    least_penalty: float = 0.0,
) -> list[JsonObject]:
    """Ever lower temperatures of a tilt (``levels`` of sharpness, rising), with a higher penalty while the text repeats
    itself. ``trial_at``: of a tilt that has the sharpness and the penalty already."""
    from training.iro.trials import PENALTIES

    settings = []
    penalties = [penalty for penalty in (0.0, *PENALTIES) if penalty >= least_penalty]
    for sharpness in levels:
        while True:
            trial, tokens = trial_at(at_setting(tilt, sharpness, penalties[0]), sharpness, penalties[0])
            rewards = [row["rewards"] for row in trial.rows]
            setting = {"sharpness": sharpness, "penalty": penalties[0], "base_tokens": tokens}
            settings.append(setting | {"rewards": rewards, "usual": limits.allow(trial)})
            if len(penalties) == 1 or not limits.repeats(trial):
                break
            penalties = penalties[1:]
    return settings


def at_setting(tilt: Tilt, sharpness: float, penalty: float) -> Tilt:
    from value_heads.tilt import sharpened, with_repetition_penalty

    return sharpened(with_repetition_penalty(tilt, penalty), sharpness)


def chosen(tuning: JsonObject, rows: int) -> JsonObject:
    """Of the settings that were tried and write like the frozen model, the best for so many rows."""
    usual = [trial for trial in tuning["tried"] if trial["usual"]] or tuning["tried"][:1]
    best: JsonObject = max(usual, key=lambda trial: pick_of(trial["rewards"], rows))
    return best


def trial_of(
    piece: Piece,
    tilt: Tilt,
    strength: float = 1.0,
    sharpness: float = 0.0,
    penalty: float = 0.0,
    samples: int = SAMPLES,
    rescored: Callable[[Prompt, Sequence[int]], tuple[list[float], float]] | None = None,
) -> tuple[Trial, int]:
    """Samples of the validation prompts by ``tilt``, which has strength, sharpness and penalty already; and the base
    tokens that they took. ``rescored``: a sample's log-probabilities under the frozen model, and its nats from that,
    where the piece's engine is of another model."""
    from training.iro.over_optimization import measures
    from training.iro.tilt_trials import Trial

    params = best_of(samples).model_copy(update={"strength": 1.0})
    results = piece.search(piece.validation, params, None, derive_seed(piece.seed, TUNING), tilt)
    rows = []
    for prompt, result in zip(piece.validation, results, strict=True):
        finals = result.finals
        rewards = piece.rewards([prompt] * len(finals), [piece.text(final.tokens) for final in finals])
        scores = [rescored(prompt, final.tokens) if rescored else (final.logprobs, final.kl) for final in finals]
        logprobs = [math.fsum(of_tokens) for of_tokens, _ in scores]
        rows.append(
            {
                "mean": fmean(rewards),
                "rewards": rewards,
                "logprob": sum(logprobs),
                "tokens": sum(len(final.tokens) for final in finals),
                "kl": fmean(kl for _, kl in scores),
                "completions": [measures(final.tokens, each) for final, each in zip(finals, logprobs, strict=True)],
            }
        )
    return Trial("bias", strength, rows, sharpness, penalty), sum(result.usage.base_tokens for result in results)


def pick_of(rewards: Sequence[Sequence[float]], rows: int) -> float:
    """Mean reward of the grader's pick among ``rows`` samples, over disjoint groups of each prompt's samples."""
    size = min(rows, len(rewards[0]))
    return fmean(
        max(of_prompt[start : start + size])
        for of_prompt in rewards
        for start in range(0, len(of_prompt) - size + 1, size)
    )
