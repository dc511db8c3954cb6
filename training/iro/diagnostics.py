"""How good a value function is on prompts it was not fitted on, by token position; and how sure a mean is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.iro.fit import Graded, Shards
from training.iro.prefixes import prefix_lengths
from training.json_values import JsonObject
from training.run import Run
from value_heads.metrics import Array, calibration, r2_by_position, within_prompt

Values = Callable[[Graded], Tensor]
CORRELATION_POINTS = 64
BY_POSITION = ("correlation", "stack_correlation", "variance_share", "r2", "calibration")


@torch.no_grad()
def diagnose(heldout: Shards, new: Values, stack_values: Values) -> JsonObject:
    """By token: correlation within prompts [T] of the newest value function and of the stack; the newest's share of
    within-prompt variance [T], R² [T] and calibration bins. ``overall``: the two correlations over all prefixes.

    In standardised rewards. ``new`` and ``stack_values`` give [N] at the stored prefixes; tokens between are NaN.
    Correlations are among draws of one policy: one that tells policies apart says nothing of a search's gain.
    """
    new_rows, stack_rows, rewards, lengths, groups, every_reward = [], [], [], [], [], []
    for shard, graded in ((i, part) for i in range(len(heldout)) for part in heldout.graded(i).parts()):
        sizes = torch.bincount(graded.row_N, minlength=len(graded.tokens)).tolist()
        new_rows += list(new(graded).split(sizes))
        stack_rows += list(stack_values(graded).split(sizes))
        rewards.append(graded.rewards_R)
        lengths.append(graded.lengths_R)
        groups.append(heldout.groups(shard, graded.prompt_R))
        every_reward.append(graded.rewards_R[graded.row_N])
    rewards_N, lengths_N, groups_N = (torch.cat(parts).numpy() for parts in (rewards, lengths, groups))
    length = int(lengths_N.max())
    place_P = np.array(prefix_lengths(length)) - 1
    reach_N = np.searchsorted(place_P, lengths_N)  # prefixes of each rollout that others have too
    new_NP, stack_NP = (pad_sequence(rows, batch_first=True).numpy() for rows in (new_rows, stack_rows))
    newest = within_prompt(new_NP, rewards_N, groups_N, reach_N)
    stack = within_prompt(stack_NP, rewards_N, groups_N, reach_N)

    def by_token(values_P: Array) -> list[float]:
        values_T = np.full(length, np.nan)
        values_T[place_P] = values_P
        return values_T.tolist()

    bins = calibration(torch.cat(new_rows).numpy(), torch.cat(every_reward).numpy())
    return {
        "correlation": by_token(newest.correlation_T),
        "stack_correlation": by_token(stack.correlation_T),
        "variance_share": by_token(newest.variance_share_T),
        "overall": {"correlation": newest.correlation, "stack_correlation": stack.correlation},
        "r2": by_token(r2_by_position(new_NP, rewards_N, reach_N)),
        "calibration": [asdict(bin) for bin in bins],
    }


def emit_correlation(run: Run, step: int, correlation_T: Sequence[float]) -> None:
    """An event with the correlation of the value functions' sum at the tokens where it is measured, 64 at most."""
    measured = [(token, value) for token, value in enumerate(correlation_T, start=1) if not math.isnan(value)]
    points = measured[:: -(-len(measured) // CORRELATION_POINTS) or 1]
    by_token = {"tokens": [token for token, _ in points], "correlation": [value for _, value in points]}
    run.emit("message", f"Value correlation of iteration {step} by token", {"step": step, "by_token": by_token})


def mean_and_error(samples: Sequence[float]) -> tuple[float, float]:
    """Mean of the samples that are not NaN, and its standard error (NaN for fewer than two)."""
    valid_samples = np.array([sample for sample in samples if not math.isnan(sample)])
    error = valid_samples.std(ddof=1) / math.sqrt(len(valid_samples)) if len(valid_samples) > 1 else math.nan
    return float(valid_samples.mean()) if len(valid_samples) else math.nan, float(error)


def ranking_mean(samples: Sequence[float]) -> float:
    """Mean of the samples that are not NaN, -∞ without one: ``max`` keeps a NaN that comes first."""
    mean, _ = mean_and_error(samples)
    return -math.inf if math.isnan(mean) else mean


def mean_and_half_width(samples: Sequence[float]) -> tuple[float, float]:
    """Mean of the samples that are not NaN, and half its 95 % Student interval (NaN for fewer than two).

    Student's t, as the standard error is that of a few: of two samples the interval is 6.5 times as wide as the normal
    approximation's, of twelve 1.12 times.
    """
    mean, error = mean_and_error(samples)
    count = sum(not math.isnan(sample) for sample in samples)
    return mean, error * float(stdtrit(count - 1, 0.975)) if count > 1 else math.nan


def reward_statistics(rewards: Sequence[float]) -> JsonObject:
    """``reward``, their mean; ``error``, its standard error; ``half_width``, of its 95 % interval."""
    reward, error = mean_and_error(rewards)
    return {"reward": reward, "error": error, "half_width": mean_and_half_width(rewards)[1]}


def samples_to_detect(differences: Sequence[float]) -> int | None:
    """How many paired differences show a mean as far from 0 as theirs: at 5 %, two-sided, with power 80 %.

    (z_.975 + z_.8)² variance / mean², by the normal approximation. None where it is unknown: fewer than two, or mean 0.
    """
    valid_differences = np.array([difference for difference in differences if not math.isnan(difference)])
    if len(valid_differences) < 2 or valid_differences.mean() == 0:
        return None
    return max(2, math.ceil((1.960 + 0.842) ** 2 * valid_differences.var(ddof=1) / valid_differences.mean() ** 2))
