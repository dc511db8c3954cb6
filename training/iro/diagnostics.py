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
from value_heads.metrics import calibration, r2_by_position, within_prompt_correlation

Values = Callable[[Graded], Tensor]


@torch.no_grad()
def diagnose(heldout: Shards, new: Values, whole: Values) -> dict[str, Any]:
    """Correlation within prompts [T], of the newest value function and of the stack; R² [T] and calibration bins of the
    newest. In standardised rewards. ``new`` and ``whole`` give [R, T] at every response token of a shard.
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
