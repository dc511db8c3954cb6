"""Bilevel optimization by a server and workers whose messages are compressed (arXiv:2405.18858): C-, CM- and EF-SOBA.

The server holds x, y and z; workers send directions, a row a worker, all leaves of a tree in one vector. Over processes
(``network``) each holds a copy of what the server holds, and the rows of its own workers.
The updates are a reconstruction from the paper's description.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from training.bilevel.compressors import Compressor
from training.bilevel.network import STACKED, Average, Message, Network
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
    network: Network = STACKED

    def start(self, x: Tree, y: Tree) -> State:
        """Raises ValueError if a compressor is biased."""
        for level, compressor in (("upper", self.upper), ("lower", self.lower)):
            if not compressor.unbiased:
                raise ValueError(f"{level}: {compressor} is biased; take an unbiased one such as RandK, or EF-SOBA")
        return State(x=x, y=y, z=tree_map(torch.zeros_like, y), h=torch.zeros_like(_vector(x)))

    def step(self, state: State, batch: Tree, generator: torch.Generator) -> State:
        """One iteration; ``batch`` [n, ...], a row a worker."""
        u, v, p = _directions(self.problem, state.x, state.y, state.z, batch)
        messages = [Message(self.upper, u), Message(self.lower, v), Message(self.lower, p)]
        u, v, p = (average.mean for average in self.network.average(messages, generator))
        h = (1 - self.theta) * state.h + self.theta * u
        z = _descend(state.z, self.gamma, p)
        shrink = (self.radius / _vector(z).norm()).clamp(max=1)
        return State(
            x=_descend(state.x, self.alpha, h),
            y=_descend(state.y, self.beta, v),
            z=tree_map(lambda leaf: shrink * leaf, z),
            h=h,
        )


class FeedbackState(NamedTuple):
    """x, y, z: the server's trees. h [n, d_x]: each worker's average of u.

    m [n, .]: each worker's memory, what is known of its h, v and p. known [.]: the server's, their means over workers.
    """

    x: Tree
    y: Tree
    z: Tree
    h: torch.Tensor
    m_x: torch.Tensor
    m_y: torch.Tensor
    m_z: torch.Tensor
    known_x: torch.Tensor
    known_y: torch.Tensor
    known_z: torch.Tensor


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
    network: Network = STACKED

    def start(self, x: Tree, y: Tree, workers: int) -> FeedbackState:
        """``workers``: of all processes."""
        z, held = tree_map(torch.zeros_like, y), len(self.network.held(workers))
        no_x, no_y = torch.zeros_like(_vector(x)), torch.zeros_like(_vector(y))
        m_x, m_y = no_x.repeat(held, 1), no_y.repeat(held, 1)
        return FeedbackState(x, y, z, m_x, m_x, m_y, m_y, known_x=no_x, known_y=no_y, known_z=no_y)

    def step(self, state: FeedbackState, batch: Tree, generator: torch.Generator) -> FeedbackState:
        """One iteration; ``batch`` [n, ...], a row a worker. ValueError if it has not as many as there are here."""
        u, v, p = _directions(self.problem, state.x, state.y, state.z, batch)
        if len(u) != len(state.h):
            raise ValueError(f"batch: has {len(u)} rows; its leading axis must be {len(state.h)} workers")
        h = (1 - self.theta) * state.h + self.theta * u
        messages = [
            Message(self.upper, h - state.m_x),
            Message(self.lower, v - state.m_y),
            Message(self.lower, p - state.m_z),
        ]
        to_x, to_y, to_z = self.network.average(messages, generator)
        m_x, known_x = _remember(self.upper, state.m_x, state.known_x, to_x)
        m_y, known_y = _remember(self.lower, state.m_y, state.known_y, to_y)
        m_z, known_z = _remember(self.lower, state.m_z, state.known_z, to_z)
        return FeedbackState(
            x=_descend(state.x, self.alpha, state.known_x + to_x.mean),
            y=_descend(state.y, self.beta, state.known_y + to_y.mean),
            z=_descend(state.z, self.gamma, state.known_z + to_z.mean),
            h=h,
            m_x=m_x,
            m_y=m_y,
            m_z=m_z,
            known_x=known_x,
            known_y=known_y,
            known_z=known_z,
        )


def bits_up(algorithm: Soba | EFSoba, x: Tree, y: Tree) -> int:
    """What one worker sends in one step, with 32-bit floats."""
    return algorithm.upper.bits(len(_vector(x))) + 2 * algorithm.lower.bits(len(_vector(y)))


def bits_down(x: Tree, y: Tree) -> int:
    """What one worker hears in one step: the server's three directions, uncompressed, with 32-bit floats."""
    return 32 * (len(_vector(x)) + 2 * len(_vector(y)))


def _remember(
    compressor: Compressor, memory: torch.Tensor, known: torch.Tensor, average: Average
) -> tuple[torch.Tensor, torch.Tensor]:
    """The workers' memories [n, d] and the server's [d] after a message."""
    delta = 1 / (1 + compressor.omega(memory.shape[-1])) if compressor.unbiased else 1.0
    return memory + delta * average.sent, known + delta * average.mean


def _directions(problem: BilevelProblem, x: Tree, y: Tree, z: Tree, batch: Tree) -> tuple[torch.Tensor, ...]:
    found = vmap(problem.directions, in_dims=(None, None, None, 0))(x, y, z, batch)
    return tuple(torch.cat([leaf.reshape(len(leaf), -1) for leaf in tree_leaves(tree)], dim=1) for tree in found)


def _vector(tree: Tree) -> torch.Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree_leaves(tree)])


def _descend(tree: Tree, step: float, direction: torch.Tensor) -> Tree:
    leaves, spec = tree_flatten(tree)
    parts = direction.split([leaf.numel() for leaf in leaves])
    return tree_unflatten([leaf - step * part.view_as(leaf) for leaf, part in zip(leaves, parts, strict=True)], spec)
