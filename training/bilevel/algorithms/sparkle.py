"""SPARKLE: decentralized bilevel optimization in a single loop (arXiv:2411.14166), and D-SOBA as its baseline.

The variables of all agents are stacked on a leading axis n. With a ``network`` over processes, n counts the agents of
this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.func import vmap
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_map

from training.bilevel.algorithms.method import BilevelMethod, ProblemSetup, neighbour_bytes
from training.bilevel.distributed.network import STACKED, Network
from training.bilevel.problem import BilevelProblem, Tree
from training.bilevel.topology import TOLERANCE


class Strategy(NamedTuple):
    """How a level mixes and corrects for heterogeneity: s⁺ = A(C s - step · direction) - q, q⁺ = q + B² s⁺.

    A, B², C [n, n]. q is the paper's B d: (I - W)^½ has no sparsity, its square has that of W.
    """

    A: torch.Tensor
    B2: torch.Tensor
    C: torch.Tensor


def exact_diffusion(W: torch.Tensor) -> Strategy:
    W, identity = _semidefinite(W), _identity(W)
    return Strategy(A=W, B2=identity - W, C=identity)


def extra(W: torch.Tensor) -> Strategy:
    W, identity = _semidefinite(W), _identity(W)
    return Strategy(A=identity, B2=identity - W, C=W)


def atc_tracking(W: torch.Tensor) -> Strategy:
    identity = _identity(W)
    return Strategy(A=W @ W, B2=_square(identity - W), C=identity)


def semi_atc_tracking(W: torch.Tensor) -> Strategy:
    return Strategy(A=W, B2=_square(_identity(W) - W), C=W)


def non_atc_tracking(W: torch.Tensor) -> Strategy:
    """Does not mix directions: negative eigenvalues of W need smaller steps; (I + W)/2 has none."""
    identity = _identity(W)
    return Strategy(A=identity, B2=_square(identity - W), C=W @ W)


def diffusion(W: torch.Tensor) -> Strategy:
    """No correction: s⁺ = W(s - step · direction). At both levels it is D-SOBA."""
    return Strategy(A=W, B2=torch.zeros_like(W), C=torch.eye(len(W), dtype=W.dtype))


STRATEGIES: dict[str, Callable[[torch.Tensor], Strategy]] = {
    "ED": exact_diffusion,
    "EXTRA": extra,
    "ATC-GT": atc_tracking,
    "semi-ATC-GT": semi_atc_tracking,
    "non-ATC-GT": non_atc_tracking,
}


class SparkleState(NamedTuple):
    """x, y, z (the estimate of [∇²₂₂g]⁻¹∇₂f), r (the moving average of u) and each level's correction, all [n, ...]."""

    x: Tree
    y: Tree
    z: Tree
    r: Tree
    qx: Tree
    qy: Tree
    qz: Tree


@dataclass(frozen=True)
class Sparkle:
    """``lower`` moves y and z, ``upper`` moves x; "SPARKLE-L-U" of the paper.

    ``alpha``, ``beta``, ``gamma``: steps of x, y, z. ``theta``: weight of the newest u in its moving average.
    """

    problem: BilevelProblem
    lower: Strategy
    upper: Strategy
    alpha: float
    beta: float
    gamma: float
    theta: float = 1.0
    network: Network = STACKED

    def start(self, x: Tree, y: Tree, batch: Tree) -> SparkleState:
        """All agents at x and y (one agent's, no leading axis); ``batch`` gives shapes only.

        Raises ValueError if both levels and the leading axis of ``batch`` differ in their numbers of agents.
        """
        if len(self.upper.A) != len(self.lower.A):
            raise ValueError(
                f"the lower level has {len(self.lower.A)} agents, the upper {len(self.upper.A)}: make them equal"
            )
        agents = len(self.network.held(len(self.lower.A)))
        for path, leaf in tree_flatten_with_path(batch)[0]:
            if leaf.ndim == 0 or len(leaf) != agents:
                label = "".join(map(str, path)) or "itself"
                raise ValueError(
                    f"batch, {label}: has shape {list(leaf.shape)}; its leading axis must be {agents} agents"
                )
        x, y = (tree_map(lambda leaf: leaf.expand(agents, *leaf.shape).clone(), tree) for tree in (x, y))
        no_x, no_y = tree_map(torch.zeros_like, x), tree_map(torch.zeros_like, y)
        return SparkleState(x=x, y=y, z=no_y, r=no_x, qx=no_x, qy=no_y, qz=no_y)

    def step(self, state: SparkleState, batch: Tree, generator: torch.Generator | None = None) -> SparkleState:
        """One iteration on ``batch`` [n, ...]. All directions are taken at the current (x, y, z): reconstruction.

        ``generator`` is not used: nothing is compressed.
        """
        u, v, p = vmap(self.problem.directions)(state.x, state.y, state.z, batch)
        r = tree_map(lambda old, new: (1 - self.theta) * old + self.theta * new, state.r, u)
        x, qx = self._move(self.upper, state.x, state.qx, _times(self.alpha, r))
        moves = _times(self.beta, v), _times(self.gamma, p)
        (y, z), (qy, qz) = self._move(self.lower, (state.y, state.z), (state.qy, state.qz), moves)
        return SparkleState(x=x, y=y, z=z, r=r, qx=qx, qy=qy, qz=qz)

    def _move(self, strategy: Strategy, s: Tree, q: Tree, move: Tree) -> tuple[Tree, Tree]:
        mix = self.network.mix
        moved = mix(strategy.A, tree_map(torch.sub, mix(strategy.C, s), move))
        moved = tree_map(torch.sub, moved, q)
        return moved, tree_map(torch.add, q, mix(strategy.B2, moved))


def consensus_error(tree: Tree) -> float:
    """Σ_i ‖s_i - mean s‖² over agents."""
    return sum(float((leaf - leaf.mean(0)).square().sum()) for leaf in tree_leaves(tree))


def _times(step: float, direction: Tree) -> Tree:
    return tree_map(lambda leaf: step * leaf, direction)


def _identity(W: torch.Tensor) -> torch.Tensor:
    """I of the size of W. Raises ValueError if W is not symmetric."""
    if not torch.allclose(W, W.T, rtol=0, atol=TOLERANCE):
        raise ValueError("mixing matrix: must be symmetric for SPARKLE; take (W + W^T)/2")
    return torch.eye(len(W), dtype=W.dtype)


def _square(matrix: torch.Tensor) -> torch.Tensor:
    return matrix @ matrix


def _semidefinite(W: torch.Tensor) -> torch.Tensor:
    """W, or (I + W)/2 if W has negative eigenvalues, which ED and EXTRA do not allow."""
    identity = _identity(W)
    return W if float(torch.linalg.eigvalsh(W)[0]) >= -TOLERANCE else (identity + W) / 2


def _method(lower: str, upper: str) -> BilevelMethod:
    """``bytes_sent`` is that of the textbook recursions: a vector per variable and step, two by gradient tracking.

    `Sparkle` takes the same iterates in its general form, which exchanges s and its correction apart: over processes ED
    and EXTRA send two vectors per variable and step, gradient tracking four, diffusion one.
    """
    strategies = STRATEGIES | {"diffusion": diffusion}

    def build(setup: ProblemSetup) -> Sparkle:
        levels = strategies[lower](setup.W), strategies[upper](setup.W)
        return Sparkle(setup.problem, *levels, setup.alpha, setup.beta, setup.beta, setup.theta)

    vectors = {name: 2 if name.endswith("GT") else 1 for name in strategies}
    return BilevelMethod(
        build=build,
        evaluations=3,
        bytes_sent=neighbour_bytes(vectors[upper], 2 * vectors[lower]),
        corrects_heterogeneity="diffusion" not in (lower, upper),
    )


METHODS = {
    "D-SOBA": _method("diffusion", "diffusion"),
    "ED": _method("ED", "ED"),
    "ED/ATC-GT": _method("ED", "ATC-GT"),
    "ATC-GT": _method("ATC-GT", "ATC-GT"),
    "EXTRA": _method("EXTRA", "EXTRA"),
}
