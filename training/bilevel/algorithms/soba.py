"""C-, CM- and EF-SOBA: a server, and workers that send it compressed messages (arXiv:2405.18858).

The server holds x, y and z. Workers send directions: one row per worker, all leaves of a tree in one vector. With a
``network`` over processes, each process holds a copy of the server's variables and the rows of its workers. The updates
are a reconstruction from the paper's description.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from training.bilevel.algorithms.method import BilevelMethod, ProblemSetup
from training.bilevel.distributed.compressors import Compressor, Identity, RandK, TopK
from training.bilevel.distributed.network import STACKED, Average, Message, Network
from training.bilevel.problem import BilevelProblem, Tree


class SobaState(NamedTuple):
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

    def start(self, x: Tree, y: Tree, batch: Tree) -> SobaState:
        """The server at x and y; ``batch`` is not used. Raises ValueError if a compressor is biased."""
        for level, compressor in (("upper", self.upper), ("lower", self.lower)):
            if not compressor.unbiased:
                raise ValueError(f"{level}: {compressor} is biased; take an unbiased one such as RandK, or EF-SOBA")
        return SobaState(x=x, y=y, z=tree_map(torch.zeros_like, y), h=torch.zeros_like(_vector(x)))

    def step(self, state: SobaState, batch: Tree, generator: torch.Generator) -> SobaState:
        """One iteration; ``batch`` [n, ...], one row per worker."""
        u, v, p = _directions(self.problem, state.x, state.y, state.z, batch)
        messages = [Message(self.upper, u), Message(self.lower, v), Message(self.lower, p)]
        u, v, p = (average.mean for average in self.network.average(messages, generator))
        h = (1 - self.theta) * state.h + self.theta * u
        z = _descend(state.z, self.gamma, p)
        shrink = (self.radius / _vector(z).norm()).clamp(max=1)
        return SobaState(
            x=_descend(state.x, self.alpha, h),
            y=_descend(state.y, self.beta, v),
            z=tree_map(lambda leaf: shrink * leaf, z),
            h=h,
        )


class EFSobaState(NamedTuple):
    """x, y, z: the server's trees. h [n, d_x]: each worker's average of u.

    m [n, .]: each worker's memory of its h, v and p. mean [.]: the server's copies of the means of m over all workers.
    """

    x: Tree
    y: Tree
    z: Tree
    h: torch.Tensor
    m_x: torch.Tensor
    m_y: torch.Tensor
    m_z: torch.Tensor
    mean_x: torch.Tensor
    mean_y: torch.Tensor
    mean_z: torch.Tensor


@dataclass(frozen=True)
class EFSoba:
    """EF-SOBA: workers compress the difference from their memory m. Fields as in ``Soba``.

    Accepts a biased compressor, with memories that move by the full message (reconstruction).
    """

    problem: BilevelProblem
    upper: Compressor
    lower: Compressor
    alpha: float
    beta: float
    gamma: float
    theta: float = 1.0
    network: Network = STACKED

    def start(self, x: Tree, y: Tree, batch: Tree) -> EFSobaState:
        """The server at x and y; ``batch`` [n, ...] gives the number of workers of this process."""
        z, workers = tree_map(torch.zeros_like, y), len(tree_leaves(batch)[0])
        zero_x, zero_y = torch.zeros_like(_vector(x)), torch.zeros_like(_vector(y))
        m_x, m_y = zero_x.repeat(workers, 1), zero_y.repeat(workers, 1)
        return EFSobaState(x, y, z, m_x, m_x, m_y, m_y, mean_x=zero_x, mean_y=zero_y, mean_z=zero_y)

    def step(self, state: EFSobaState, batch: Tree, generator: torch.Generator) -> EFSobaState:
        """One iteration; ``batch`` [n, ...], one row per worker. Raises ValueError for a different number of rows."""
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
        m_x, mean_x = _remember(self.upper, state.m_x, state.mean_x, to_x)
        m_y, mean_y = _remember(self.lower, state.m_y, state.mean_y, to_y)
        m_z, mean_z = _remember(self.lower, state.m_z, state.mean_z, to_z)
        return EFSobaState(
            x=_descend(state.x, self.alpha, state.mean_x + to_x.mean),
            y=_descend(state.y, self.beta, state.mean_y + to_y.mean),
            z=_descend(state.z, self.gamma, state.mean_z + to_z.mean),
            h=h,
            m_x=m_x,
            m_y=m_y,
            m_z=m_z,
            mean_x=mean_x,
            mean_y=mean_y,
            mean_z=mean_z,
        )


def bits_up(algorithm: Soba | EFSoba, x: Tree, y: Tree) -> int:
    """Bits that one worker sends per step, with 32-bit floats."""
    return algorithm.upper.bits(len(_vector(x))) + 2 * algorithm.lower.bits(len(_vector(y)))


def bits_down(x: Tree, y: Tree) -> int:
    """Bits that one worker receives per step: three uncompressed directions of 32-bit floats."""
    return 32 * (len(_vector(x)) + 2 * len(_vector(y)))


def _remember(
    compressor: Compressor, memory: torch.Tensor, mean: torch.Tensor, average: Average
) -> tuple[torch.Tensor, torch.Tensor]:
    """The workers' memories [n, d] and the server's [d] after a message."""
    delta = 1 / (1 + compressor.omega(memory.shape[-1])) if compressor.unbiased else 1.0
    return memory + delta * average.sent, mean + delta * average.mean


def _directions(problem: BilevelProblem, x: Tree, y: Tree, z: Tree, batch: Tree) -> tuple[torch.Tensor, ...]:
    directions = vmap(problem.directions, in_dims=(None, None, None, 0))(x, y, z, batch)
    return tuple(torch.cat([leaf.reshape(len(leaf), -1) for leaf in tree_leaves(tree)], dim=1) for tree in directions)


def _vector(tree: Tree) -> torch.Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree_leaves(tree)])


def _descend(tree: Tree, step: float, direction: torch.Tensor) -> Tree:
    leaves, spec = tree_flatten(tree)
    parts = direction.split([leaf.numel() for leaf in leaves])
    return tree_unflatten([leaf - step * part.view_as(leaf) for leaf, part in zip(leaves, parts, strict=True)], spec)


def _server_copies(state: Tree) -> tuple[Tree, Tree]:
    """x and y with an agents' axis of one."""
    x, y = (tree_map(lambda leaf: leaf[:, None], tree) for tree in (state.x, state.y))
    return x, y


def _method(build: Callable[[ProblemSetup], Soba | EFSoba]) -> BilevelMethod:
    def bytes_sent(setup: ProblemSetup) -> float:
        return bits_up(build(setup), setup.x, setup.y) / 8

    return BilevelMethod(build=build, evaluations=3, bytes_sent=bytes_sent, variables=_server_copies, compressed=True)


def _sent_coordinates(setup: ProblemSetup) -> tuple[int, int]:
    """Of x and of y."""
    x, y = (max(1, round(setup.sent_share * size)) for size in setup.sizes)
    return x, y


def _largest(setup: ProblemSetup) -> tuple[TopK, TopK]:
    x, y = _sent_coordinates(setup)
    return TopK(x), TopK(y)


def _random(setup: ProblemSetup) -> tuple[RandK, RandK]:
    x, y = _sent_coordinates(setup)
    return RandK(x, shared_seed=True), RandK(y, shared_seed=True)


def _uncompressed(setup: ProblemSetup) -> Soba:
    return Soba(setup.problem, Identity(), Identity(), setup.alpha, setup.beta, setup.beta, setup.theta)


def _ef_largest(setup: ProblemSetup) -> EFSoba:
    return EFSoba(setup.problem, *_largest(setup), setup.alpha, setup.beta, setup.beta, setup.theta)


def _ef_random(setup: ProblemSetup) -> EFSoba:
    return EFSoba(setup.problem, *_random(setup), setup.alpha, setup.beta, setup.beta, setup.theta)


def _compressed_random(setup: ProblemSetup) -> Soba:
    return Soba(setup.problem, *_random(setup), setup.alpha, setup.beta, setup.beta)


def _averaged_random(setup: ProblemSetup) -> Soba:
    return Soba(setup.problem, *_random(setup), setup.alpha, setup.beta, setup.beta, setup.theta)


METHODS = {
    "SOBA": _method(_uncompressed),
    "EF-SOBA, top-k": _method(_ef_largest),
    "EF-SOBA, rand-k": _method(_ef_random),
    "C-SOBA, rand-k": _method(_compressed_random),
    "CM-SOBA, rand-k": _method(_averaged_random),
}
