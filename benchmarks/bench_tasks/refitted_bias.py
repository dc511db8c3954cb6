"""A control: a static bias that is fitted again to its own samples, as an alignment job fits its tilt: first tuned,
temperature and repetition penalty too, for one row.

Each further bias is fitted to samples of what there is, as many as a round of a job draws, and is added to it, until
none is surely better or there were as many fits as a job has rounds. What ``iro`` gains over it is neither a number for
each token nor further rounds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.answers import best_of
from benchmarks.bench_tasks.piece import TRAINING, Piece, text_limits
from benchmarks.bench_tasks.temperatures import SAMPLES, Tempered, trial_of
from iro_server import JsonObject
from iro_server.alignment.definition import DEFAULT_OPTIONS
from training.run import derive_seed

if TYPE_CHECKING:
    from training.iro.tilt_trials import Trial
    from value_heads.tilt import Tilt

NAME = "static_bias_refitted"


def strength_step(fit: int) -> str:
    """The step of the run that keeps how strong a further bias was added; ``fit``: from 2."""
    return f"{NAME}-{fit}-strength"


def refitted_bias(piece: Piece) -> list[Tilt]:
    """The static bias with all that is added to it; empty where the rewards of the piece's job were all equal. Steps of
    the run keep each further bias and what was tried."""
    from value_heads.tilt import fold_tilts

    if not piece.trained.static_biases:
        return []
    tilt = Tempered(piece, "static_bias", piece.trained.static_biases).tuned(rows=1)
    for fit in range(2, DEFAULT_OPTIONS.tilt_rounds + 1):
        fitted = piece.step(f"{NAME}-{fit}-fit", partial(fit_again, piece, tilt, fit))
        added = replace(piece.no_tilt, bias=fitted["bias"])
        tuning = piece.step(strength_step(fit), partial(tuned, piece, tilt, added, fitted, fit))
        if not tuning["strength"]:
            break
        tilt = fold_tilts([tilt, added], [1.0, tuning["strength"]])
    return [tilt]


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
    """The ``strength`` of ``added``, chosen on validation prompts by the rules of a job's trials (0: it is not surely
    better than ``before`` alone), the mean reward of each one ``tried``, and what fitting and trying took."""
    from training.iro.tilt_trials import next_trial
    from training.iro.tilting import FURTHER_TRIALS, TRIALS
    from training.iro.trials import best_trial, mean_reward
    from value_heads.tilt import fold_tilts

    began, base_tokens, limits = time.monotonic(), fitted["base_tokens"], text_limits(piece, piece.trained.folder)
    trials: list[Trial] = []

    def try_strength(strength: float) -> None:
        nonlocal base_tokens
        trial, tokens = trial_of(piece, fold_tilts([before, added], [1.0, strength]), strength)
        trials.append(trial)
        base_tokens += tokens

    for strength in (0.0, *TRIALS["bias"]):
        try_strength(strength)
    base = trials[0]
    while len(trials) < 1 + len(TRIALS["bias"]) + FURTHER_TRIALS and (further := next_trial(trials[1:], limits)):
        try_strength(further[1])
    best = best_trial(trials[1:], base, limits)
    return {
        "task": piece.task.name,
        "method": NAME,
        "seed": piece.seed,
        "rows": 1,
        "iteration": fit,
        "strength": best.strength if best else 0.0,
        "tried": [{"strength": trial.strength, "reward": mean_reward(trial)} for trial in trials],
        "base_tokens": base_tokens,
        "reward_calls": fitted["reward_calls"] + len(trials) * SAMPLES * len(piece.validation),
        "seconds": fitted["seconds"] + time.monotonic() - began,
    }
