"""A control: a static bias that is fitted again to its own samples, as an alignment job fits its tilt.

Each further bias is fitted to samples of what there is, as many as a round of a job draws, and is added to it, until
none is surely better or there were as many fits as a job has rounds. Strengths and repetition penalties are tried for
one row, by the rules of a job's early rounds; a temperature and a further penalty are chosen at the end. What ``iro``
gains over it is neither a number for each token nor further rounds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.answers import best_of
from benchmarks.bench_tasks.piece import TRAINING, Piece, first_bias, text_limits
from benchmarks.bench_tasks.temperatures import SAMPLES, trial_of
from iro_server import JsonObject
from iro_server.alignment.definition import DEFAULT_OPTIONS
from training.run import derive_seed

if TYPE_CHECKING:
    from training.iro.tilt_trials import Trial
    from value_heads.tilt import Tilt

NAME = "static_bias_refitted"


def strength_step(fit: int) -> str:
    """The step of the run that keeps how strong a bias was added; ``fit``: from 1."""
    return f"{NAME}-{fit}-strength"


def refitted_bias(piece: Piece) -> list[Tilt]:
    """The job's first static bias with all that is added to it; empty where the rewards of the piece's job were all
    equal. Steps of the run keep each further bias and what was tried."""
    if not piece.trained.static_biases:
        return []
    tilt = piece.no_tilt
    for fit in range(1, DEFAULT_OPTIONS.tilt_rounds + 1):
        further = partial(fit_again, piece, tilt, fit)
        fitted = piece.step(f"{NAME}-{fit}-fit", further) if fit > 1 else first_fit(piece)
        added = replace(piece.no_tilt, bias=fitted["bias"])
        tuning = piece.step(strength_step(fit), partial(tuned, piece, tilt, added, fitted, fit))
        if not tuning["strength"]:
            break
        tilt = with_addition(tilt, added, tuning["strength"], tuning["penalty"])
    return [tilt]


def with_addition(before: Tilt, added: Tilt, strength: float, penalty: float) -> Tilt:
    from value_heads.tilt import fold_tilts, with_repetition_penalty

    return with_repetition_penalty(fold_tilts([before, added], [1.0, strength]), penalty)


def first_fit(piece: Piece) -> JsonObject:
    """Of the piece's job, which has paid for it."""
    return {"bias": first_bias(piece.trained.folder), "base_tokens": 0, "reward_calls": 0, "seconds": 0.0}


def fit_again(piece: Piece, before: Tilt, fit: int) -> JsonObject:
    """``bias`` [V] from samples of ``before``, and what they took."""
    import torch

    from training.iro.rollouts import tilted_rollouts
    from value_heads.bias_fit import fit_bias
    from value_heads.threads import on_fresh_thread

    began, seed = time.monotonic(), derive_seed(piece.seed, TRAINING, fit)
    prompts = piece.prompts("train", piece.config.train_prompts)
    params = best_of(tilted_rollouts(piece.config.rollouts_per_prompt)).model_copy(update={"strength": 1.0})
    results = piece.search(prompts, params, None, seed, before)
    samples = [(prompt, final) for prompt, result in zip(prompts, results, strict=True) for final in result.finals]
    rewards = piece.rewards([prompt for prompt, _ in samples], [piece.text(final.tokens) for _, final in samples])
    tokens = [final.tokens for _, final in samples]
    prompts_R = torch.tensor([prompt.index for prompt, _ in samples])
    head_VD = piece.engine.frozen.head_weight.float().cpu()
    bias_V = on_fresh_thread(lambda: fit_bias(tokens, prompts_R, torch.tensor(rewards), head_VD, seed % 2**31))
    return {
        "bias": bias_V,
        "base_tokens": sum(result.usage.base_tokens for result in results),
        "reward_calls": len(samples),
        "seconds": time.monotonic() - began,
    }


def tuned(piece: Piece, before: Tilt, added: Tilt, fitted: JsonObject, fit: int) -> JsonObject:
    """The ``strength`` of ``added`` and the ``penalty``, chosen on validation prompts by the rules of an early round
    (0: it is not surely better than ``before`` alone), the mean reward of each setting ``tried``, and what fitting and
    trying took."""
    from training.iro.tilt_trials import next_trial, stronger_trials
    from training.iro.tilting import FURTHER_TRIALS, TRIALS
    from training.iro.trials import PENALTIES, Levels, best_trial, mean_reward

    began, base_tokens = time.monotonic(), fitted["base_tokens"]
    limits = text_limits(piece, piece.trained.folder).before_cooling()

    def tried(kind: str, strength: float, sharpness: float = 0.0, penalty: float = 0.0) -> Trial:
        nonlocal base_tokens
        trial, tokens = trial_of(piece, with_addition(before, added, strength, penalty), strength, sharpness, penalty)
        base_tokens += tokens
        return trial

    base, *trials = (tried("bias", strength) for strength in (0.0, *TRIALS["bias"]))
    most = len(trials) + FURTHER_TRIALS
    while len(trials) < most and (further := next_trial(trials, limits)):
        trials.append(tried(*further))
    trials += stronger_trials(trials, base, tried, limits, Levels((), PENALTIES))
    best = best_trial(trials, base, limits)
    return {
        "task": piece.task.name,
        "method": NAME,
        "seed": piece.seed,
        "rows": 1,
        "iteration": fit,
        "strength": best.strength if best else 0.0,
        "penalty": best.penalty if best else 0.0,
        "tried": [
            {"strength": trial.strength, "penalty": trial.penalty, "reward": mean_reward(trial)}
            for trial in [base, *trials]
        ],
        "base_tokens": base_tokens,
        "reward_calls": fitted["reward_calls"] + (1 + len(trials)) * SAMPLES * len(piece.validation),
        "seconds": fitted["seconds"] + time.monotonic() - began,
    }
