"""How good a value function is on prompts it was not fitted on, by token position; and how sure a mean is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.iro.fit import Graded, Shards
from value_heads.metrics import calibration, r2_by_position, within_prompt

Values = Callable[[Graded], Tensor]
BY_POSITION = ("correlation", "stack_correlation", "variance_share", "r2", "calibration")


@torch.no_grad()
def diagnose(heldout: Shards, new: Values, whole: Values) -> dict[str, Any]:
    """By position: correlation within prompts [T] of the newest value function and of the stack; the newest's share of
    within-prompt variance [T], R² [T] and calibration bins. ``overall``: the two correlations over all positions.

    In standardised rewards. ``new`` and ``whole`` give [R, T] at every response token of a shard.
    """
    new_rows, whole_rows, rewards, lengths, prompts = [], [], [], [], []
    for graded in map(heldout.graded, range(len(heldout))):
        new_rows += list(new(graded))
        whole_rows += list(whole(graded))
        rewards.append(graded.rewards_R)
        lengths.append(graded.lengths_R)
        prompts.append(graded.prompt_R)
    new_NT, whole_NT = (pad_sequence(rows, batch_first=True).numpy() for rows in (new_rows, whole_rows))
    rewards_N, lengths_N, prompts_N = (torch.cat(parts).numpy() for parts in (rewards, lengths, prompts))
    counted_NT = np.arange(new_NT.shape[1]) < lengths_N[:, None]
    every_reward = np.broadcast_to(rewards_N[:, None], new_NT.shape)[counted_NT]
    newest = within_prompt(new_NT, rewards_N, prompts_N, lengths_N)
    stack = within_prompt(whole_NT, rewards_N, prompts_N, lengths_N)
    return {
        "correlation": newest.correlation_T.tolist(),
        "stack_correlation": stack.correlation_T.tolist(),
        "variance_share": newest.variance_share_T.tolist(),
        "overall": {"correlation": newest.correlation, "stack_correlation": stack.correlation},
        "r2": r2_by_position(new_NT, rewards_N, lengths_N).tolist(),
        "calibration": [asdict(bin) for bin in calibration(new_NT[counted_NT], every_reward)],
    }


def mean_and_error(samples: Sequence[float]) -> tuple[float, float]:
    """Mean of the samples that are not NaN, and its standard error (NaN for fewer than two)."""
    known = np.array([sample for sample in samples if not math.isnan(sample)])
    error = known.std(ddof=1) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return float(known.mean()) if len(known) else math.nan, float(error)


def samples_to_detect(differences: Sequence[float]) -> int | None:
    """How many paired differences show a mean as far from 0 as theirs: at 5 %, two-sided, with power 80 %.

    (z_.975 + z_.8)² variance / mean², by the normal approximation. None where it is unknown: fewer than two, or mean 0.
    """
    known = np.array([difference for difference in differences if not math.isnan(difference)])
    if len(known) < 2 or known.mean() == 0:
        return None
    return max(2, math.ceil((1.960 + 0.842) ** 2 * known.var(ddof=1) / known.mean() ** 2))
