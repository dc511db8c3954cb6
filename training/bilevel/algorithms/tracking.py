"""Gradient tracking of a variable, for the algorithms that track each variable separately."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils._pytree import tree_map

from training.bilevel.distributed.network import STACKED
from training.bilevel.problem import Tree


class Tracked(NamedTuple):
    """A variable s, its tracker t of the mean direction, and the previous direction; all [n, ...]."""

    s: Tree
    t: Tree
    previous: Tree


def start_tracking(W: torch.Tensor, value: Tree) -> Tracked:
    """All agents at ``value``, their trackers at zero."""
    s = tree_map(lambda leaf: leaf.expand(len(W), *leaf.shape).clone(), value)
    zero = tree_map(torch.zeros_like, s)
    return Tracked(s, zero, zero)


def track(W: torch.Tensor, variable: Tracked, step: float, direction: Tree) -> Tracked:
    """t⁺ = W t + direction - previous; s⁺ = W s - step t⁺."""
    mixed_t = STACKED.mix(W, variable.t)
    t = tree_map(lambda mixed, new, previous: mixed + new - previous, mixed_t, direction, variable.previous)
    return Tracked(tree_map(lambda mixed, t: mixed - step * t, STACKED.mix(W, variable.s), t), t, direction)


def moving_average(old: Tree, new: Tree, theta: float) -> Tree:
    return tree_map(lambda old, new: (1 - theta) * old + theta * new, old, new)


def tracked_variables(state: Tree) -> tuple[Tree, Tree]:
    return state.x.s, state.y.s
