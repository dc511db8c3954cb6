"""Weighted sums of aligned models' values: Sum_m w_m (Sum_t V_mt / beta_mt), and of their tilts.

The target is pi_0 exp(Sum_m w_m V_m), a product of the models' distributions where they are tilts alone. Linear heads
fold into one head and tilts into one tilt, whose factors have the sum of their ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from value_heads.heads import Head, LinearHead
from value_heads.stack import ValueStack
from value_heads.tilt import fold_tilts


def compose(stacks: Sequence[ValueStack], weights: Sequence[float]) -> ValueStack:
    """The sum as one stack; a single one of weight 1 is that stack itself. Negative weights take sharpness from others,
    and leave the frozen model's own as it is.

    ValueError where the stacks are of models that differ in width, vocabulary or stop ids.
    """
    weighted = list(zip(stacks, weights, strict=True))
    if len(stacks) == 1 and weights[0] == 1:
        return stacks[0]
    terms = [(scaled(head, weight), beta) for stack, weight in weighted for head, beta in stack.terms()]
    tilts = [(stack.tilt, weight) for stack, weight in weighted if stack.tilt is not None]
    tilt = fold_tilts([tilt for tilt, _ in tilts], [weight for _, weight in tilts]) if tilts else None
    if tilt is not None and tilt.sharpness < 0:
        tilt = replace(tilt, sharpness=0.0)
    return ValueStack([head for head, _ in terms], [beta for _, beta in terms], tilt)


@torch.no_grad()
def scaled(head: Head, weight: float) -> Head:
    """weight V."""
    if isinstance(head, LinearHead):
        return LinearHead(head.spec, head.weight * weight, head.bias * weight)
    copied = copy.deepcopy(head)
    last = copied.net[-1]
    assert isinstance(last, nn.Linear)
    last.weight.mul_(weight)
    last.bias.mul_(weight)
    return copied
