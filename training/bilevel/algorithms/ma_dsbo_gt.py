"""MA-DSBO-GT: a double loop with gradient tracking (compared in arXiv:2411.14166).

A reconstruction: the plainest reading of the method. The inner loops are tracked.
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

INNER_STEPS = 5


class MaDsboGtState(NamedTuple):
    """r [n, ...]: the moving average of u."""

    x: Tracked
    y: Tracked
    z: Tracked
    r: Tree


@dataclass(frozen=True)
class MaDsboGt:
    """A step: ``inner`` steps of y, ``inner`` of z at that y, one of x along the moving average of u; all are tracked.

    ``alpha``, ``beta``, ``gamma``: steps of x, y, z. ``theta``: weight of the newest u.
    """

    problem: BilevelProblem
    W: torch.Tensor
    alpha: float
    beta: float
    gamma: float
    theta: float = 1.0
    inner: int = INNER_STEPS

    def start(self, x: Tree, y: Tree, batch: Tree) -> MaDsboGtState:
        """All agents at x and y (one agent's); ``batch`` is not used."""
        tracked = start_tracking(self.W, x)
        z = start_tracking(self.W, tree_map(torch.zeros_like, y))
        return MaDsboGtState(tracked, start_tracking(self.W, y), z, tracked.t)

    def step(self, state: MaDsboGtState, batch: Tree, generator: torch.Generator | None = None) -> MaDsboGtState:
        """One outer iteration, all of it on ``batch`` [n, ...]; ``generator`` is not used."""
        x, y, z, r = state
        for _ in range(self.inner):
            y = track(self.W, y, self.beta, vmap(grad(self.problem.lower, argnums=1))(x.s, y.s, batch))
        target = vmap(grad(self.problem.upper, argnums=1))(x.s, y.s, batch)
        for _ in range(self.inner):
            hessian = vmap(self.problem.second_order)(x.s, y.s, z.s, batch)[2]
            z = track(self.W, z, self.gamma, tree_map(torch.sub, hessian, target))
        r = moving_average(r, vmap(self.problem.directions)(x.s, y.s, z.s, batch).u, self.theta)
        return MaDsboGtState(track(self.W, x, self.alpha, r), y, z, r)


def _build(setup: ProblemSetup) -> MaDsboGt:
    """Inner steps of a fifth of ``beta``: with all of it the method diverges on hyper-cleaning."""
    inner_step = setup.beta / INNER_STEPS
    return MaDsboGt(setup.problem, setup.W, setup.alpha, inner_step, inner_step, setup.theta, INNER_STEPS)


METHODS = {
    "MA-DSBO-GT": BilevelMethod(
        build=_build,
        evaluations=2 * INNER_STEPS + 3,
        bytes_sent=neighbour_bytes(2, 4 * INNER_STEPS),
        variables=tracked_variables,
    )
}
