"""How good a value function is on prompts it was not fitted on, by token position; and how sure a mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from training.iro.fit import Shards
from value_heads import ValueStack, features
from value_heads.heads import Head
from value_heads.metrics import calibration, r2_by_position, within_prompt_correlation


@torch.inference_mode()
def diagnose(head: Head, stack: ValueStack, heldout: Shards, log_odds: bool) -> dict[str, Any]:
    """Correlation within prompts [T], of the new head and of the whole stack; R² [T] and calibration bins of the head.

    In standardised rewards. ``log_odds``: V is one, and its probability is what is compared with the reward.
    """
    new, whole, rewards, lengths, prompts = [], [], [], [], []
    for index in range(len(heldout)):
        graded = heldout.graded(index)
        values_RT = head(features(head.spec, graded.hidden))
        new += list(values_RT.sigmoid() if log_odds else values_RT)
        whole += list(stack.values(graded.hidden))
        rewards.append(graded.rewards_R)
        lengths.append(graded.lengths_R)
        prompts.append(graded.prompt_R)
    new_NT, whole_NT = (pad_sequence(rows, batch_first=True).numpy() for rows in (new, whole))
    rewards_N, lengths_N, prompts_N = (torch.cat(parts).numpy() for parts in (rewards, lengths, prompts))
    counted_NT = np.arange(new_NT.shape[1]) < lengths_N[:, None]
    every_reward = np.broadcast_to(rewards_N[:, None], new_NT.shape)[counted_NT]
    return {
        "correlation": within_prompt_correlation(new_NT, rewards_N, prompts_N, lengths_N).tolist(),
        "stack_correlation": within_prompt_correlation(whole_NT, rewards_N, prompts_N, lengths_N).tolist(),
        "r2": r2_by_position(new_NT, rewards_N, lengths_N).tolist(),
        "calibration": [asdict(bin) for bin in calibration(new_NT[counted_NT], every_reward)],
    }


def mean_and_error(samples: Sequence[float]) -> tuple[float, float]:
    """Mean of the samples that are not NaN, and its standard error (NaN for fewer than two)."""
    known = np.array([sample for sample in samples if not math.isnan(sample)])
    error = known.std(ddof=1) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return float(known.mean()) if len(known) else math.nan, float(error)
