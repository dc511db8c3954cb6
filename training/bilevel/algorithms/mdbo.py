"""MDBO: momentum-based decentralized bilevel optimization by a Neumann series (compared in arXiv:2411.14166).

A reconstruction: the plainest reading of the method. The Neumann series is of each agent's own Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from training.bilevel.algorithms.method import BilevelMethod, ProblemSetup, neighbour_bytes
from training.bilevel.algorithms.tracking import Tracked, moving_average, start_tracking, track, tracked_variables
from training.bilevel.problem import BilevelProblem, Tree

NEUMANN_TERMS = 10


class MdboState(NamedTuple):
    """r, m [n, ...]: the moving averages of u and of v."""

    x: Tracked
    y: Tracked
    r: Tree
    m: Tree


@dataclass(frozen=True)
class Mdbo:
    """z_i = scale Σ_{j < terms} (I - scale ∇²₂₂g_i)^j ∇₂f_i; x and y are tracked.

    Agents do not exchange Hessians, so that z is wrong where they differ. ``scale``: at most 1 over the largest
    eigenvalue of ∇²₂₂g_i. ``alpha``, ``beta``: steps of x and y. ``theta``: weight of the newest u and v.
    """

    problem: BilevelProblem
    W: torch.Tensor
    alpha: float
    beta: float
    scale: float
    theta: float = 1.0
    terms: int = NEUMANN_TERMS

    def start(self, x: Tree, y: Tree, batch: Tree) -> MdboState:
        """All agents at x and y (one agent's); ``batch`` is not used."""
        tracked_x, tracked_y = start_tracking(self.W, x), start_tracking(self.W, y)
        return MdboState(tracked_x, tracked_y, tracked_x.t, tracked_y.t)

    def step(self, state: MdboState, batch: Tree, generator: torch.Generator | None = None) -> MdboState:
        """One iteration on ``batch`` [n, ...]; ``generator`` is not used."""
        x, y, r, m = state
        z = vmap(self._neumann)(x.s, y.s, batch)
        u, v, _ = vmap(self.problem.directions)(x.s, y.s, z, batch)
        r, m = moving_average(r, u, self.theta), moving_average(m, v, self.theta)
        return MdboState(track(self.W, x, self.alpha, r), track(self.W, y, self.beta, m), r, m)

    def _neumann(self, x: Tree, y: Tree, batch: Tree) -> Tree:
        target = grad(self.problem.upper, argnums=1)(x, y, batch)
        z = tree_map(lambda leaf: self.scale * leaf, target)
        for _ in range(self.terms - 1):
            hessian = self.problem.second_order(x, y, z, batch)[2]
            z = tree_map(lambda z, h, b: z - self.scale * (h - b), z, hessian, target)
        return z


def _build(setup: ProblemSetup) -> Mdbo:
    return Mdbo(setup.problem, setup.W, setup.alpha, setup.beta, setup.beta / 4, setup.theta, NEUMANN_TERMS)


METHODS = {
    "MDBO": BilevelMethod(
        build=_build,
        evaluations=NEUMANN_TERMS + 3,
        bytes_sent=neighbour_bytes(2, 2),
        variables=tracked_variables,
    )
}
