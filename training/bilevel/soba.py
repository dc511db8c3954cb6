"""Bilevel optimization by a server and workers whose messages are compressed (arXiv:2405.18858): C-, CM- and EF-SOBA.

The server holds x, y and z; workers send directions, a row a worker, all leaves of a tree in one vector.
The updates are a reconstruction from the paper's description.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from training.bilevel.compressors import Compressor
from training.bilevel.problem import BilevelProblem, Tree


class State(NamedTuple):
    """x, y, z: the server's trees. h [d_x]: its average of u."""

    x: Tree
    y: Tree
    z: Tree
    h: torch.Tensor


@dataclass(frozen=True)
class Soba:
    """C-SOBA; with ``theta`` below 1 it is CM-SOBA, whose server averages u over time.

    ``upper`` compresses u, ``lower`` v and p; both unbiased. ``alpha``, ``beta``, ``gamma``: steps of x, y, z.
    ``radius``: z is clipped to this norm.
    """

    problem: BilevelProblem
    upper: Compressor
    lower: Compressor
    alpha: float
    beta: float
    gamma: float
    theta: float = 1.0
    radius: float = float("inf")

    def start(self, x: Tree, y: Tree) -> State:
        """Raises ValueError if a compressor is biased."""
        for level, compressor in (("upper", self.upper), ("lower", self.lower)):
            if not compressor.unbiased:
                raise ValueError(f"{level}: {compressor} is biased; take an unbiased one such as RandK, or EF-SOBA")
        return State(x=x, y=y, z=tree_map(torch.zeros_like, y), h=torch.zeros_like(_vector(x)))

    def step(self, state: State, batch: Tree, generator: torch.Generator) -> State:
        """One iteration; ``batch`` [n, ...], a row a worker."""
        u, v, p = _directions(self.problem, state.x, state.y, state.z, batch)
        h = (1 - self.theta) * state.h + self.theta * self.upper(u, generator).mean(0)
        z = _descend(state.z, self.gamma, self.lower(p, generator).mean(0))
        shrink = (self.radius / _vector(z).norm()).clamp(max=1)
        return State(
            x=_descend(state.x, self.alpha, h),
            y=_descend(state.y, self.beta, self.lower(v, generator).mean(0)),
            z=tree_map(lambda leaf: shrink * leaf, z),
            h=h,
        )


class FeedbackState(NamedTuple):
    """x, y, z: the server's trees. h [n, d_x]: each worker's average of u; m: what is known of h, v and p, [n, .]."""

    x: Tree
    y: Tree
    z: Tree
    h: torch.Tensor
    m_x: torch.Tensor
    m_y: torch.Tensor
    m_z: torch.Tensor


@dataclass(frozen=True)
class EFSoba:
    """EF-SOBA: workers compress only what their memory m lacks. Settings as in ``Soba``.

    A biased compressor is taken too, with memories that move by all of each message (reconstruction).
    """

    problem: BilevelProblem
    upper: Compressor
    lower: Compressor
    alpha: float
    beta: float
    gamma: float
    theta: float = 1.0

    def start(self, x: Tree, y: Tree, workers: int) -> FeedbackState:
        no_x, no_y = (torch.zeros_like(_vector(tree)).repeat(workers, 1) for tree in (x, y))
        return FeedbackState(x, y, tree_map(torch.zeros_like, y), h=no_x, m_x=no_x, m_y=no_y, m_z=no_y)

    def step(self, state: FeedbackState, batch: Tree, generator: torch.Generator) -> FeedbackState:
        """One iteration; ``batch`` [n, ...], a row a worker."""
        u, v, p = _directions(self.problem, state.x, state.y, state.z, batch)
        h = (1 - self.theta) * state.h + self.theta * u
        x_direction, m_x = _feedback(self.upper, h, state.m_x, generator)
        y_direction, m_y = _feedback(self.lower, v, state.m_y, generator)
        z_direction, m_z = _feedback(self.lower, p, state.m_z, generator)
        return FeedbackState(
            x=_descend(state.x, self.alpha, x_direction),
            y=_descend(state.y, self.beta, y_direction),
            z=_descend(state.z, self.gamma, z_direction),
            h=h,
            m_x=m_x,
            m_y=m_y,
            m_z=m_z,
        )


def bits_up(algorithm: Soba | EFSoba, x: Tree, y: Tree) -> int:
    """What one worker sends in one step."""
    return algorithm.upper.bits(len(_vector(x))) + 2 * algorithm.lower.bits(len(_vector(y)))


def _feedback(
    compressor: Compressor, target: torch.Tensor, memory: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The server's estimate [d] of the mean of ``target`` [n, d], and the new memories [n, d]."""
    message = compressor(target - memory, generator)
    delta = 1 / (1 + compressor.omega(target.shape[-1])) if compressor.unbiased else 1.0
    return (memory + message).mean(0), memory + delta * message


def _directions(problem: BilevelProblem, x: Tree, y: Tree, z: Tree, batch: Tree) -> tuple[torch.Tensor, ...]:
    found = vmap(problem.directions, in_dims=(None, None, None, 0))(x, y, z, batch)
    return tuple(torch.cat([leaf.reshape(len(leaf), -1) for leaf in tree_leaves(tree)], dim=1) for tree in found)


def _vector(tree: Tree) -> torch.Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree_leaves(tree)])


def _descend(tree: Tree, step: float, direction: torch.Tensor) -> Tree:
    leaves, spec = tree_flatten(tree)
    parts = direction.split([leaf.numel() for leaf in leaves])
    return tree_unflatten([leaf - step * part.view_as(leaf) for leaf, part in zip(leaves, parts, strict=True)], spec)
