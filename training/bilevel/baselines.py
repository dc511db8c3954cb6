"""What SPARKLE is compared with (arXiv:2411.14166): MA-DSBO-GT, MDBO, SLDBO, single-level ED, decentralized MAML.

All are reconstructions, the plainest reading of each method, in the shape of ``sparkle``: ``start`` and ``step``,
agents stacked on a leading axis n. D-SOBA is ``sparkle.diffusion`` at both levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from training.bilevel.network import STACKED
from training.bilevel.problem import BilevelProblem, Tree
from training.bilevel.sparkle import Sparkle, exact_diffusion, non_atc_tracking


class Tracked(NamedTuple):
    """A variable s, its tracker t of the mean direction, and the direction that t heard of last; all [n, ...]."""

    s: Tree
    t: Tree
    last: Tree


class MaDsboGtState(NamedTuple):
    """r [n, ...]: the moving average of u."""

    x: Tracked
    y: Tracked
    z: Tracked
    r: Tree


@dataclass(frozen=True)
class MaDsboGt:
    """Moving-average decentralized stochastic bilevel optimization with gradient tracking: a double loop.

    A step is ``inner`` steps of y, ``inner`` of z at that y, and one of x along the moving average of u, all tracked.
    ``alpha``, ``beta``, ``gamma``: steps of x, y, z. ``theta``: weight of the newest u.
    """

    problem: BilevelProblem
    W: torch.Tensor
    alpha: float
    beta: float
    gamma: float
    theta: float = 1.0
    inner: int = 5

    def start(self, x: Tree, y: Tree, batch: Tree) -> MaDsboGtState:
        """All agents at x and y (one agent's); ``batch`` is not looked at."""
        tracked = _still(self.W, x)
        return MaDsboGtState(tracked, _still(self.W, y), _still(self.W, tree_map(torch.zeros_like, y)), tracked.t)

    def step(self, state: MaDsboGtState, batch: Tree) -> MaDsboGtState:
        """One outer iteration, all of it on ``batch`` [n, ...]."""
        x, y, z, r = state
        for _ in range(self.inner):
            y = _track(self.W, y, self.beta, vmap(grad(self.problem.lower, argnums=1))(x.s, y.s, batch))
        target = vmap(grad(self.problem.upper, argnums=1))(x.s, y.s, batch)
        for _ in range(self.inner):
            hessian = vmap(self.problem.second_order)(x.s, y.s, z.s, batch)[2]
            z = _track(self.W, z, self.gamma, tree_map(torch.sub, hessian, target))
        r = _average(r, vmap(self.problem.directions)(x.s, y.s, z.s, batch).u, self.theta)
        return MaDsboGtState(_track(self.W, x, self.alpha, r), y, z, r)


class MdboState(NamedTuple):
    """r, m [n, ...]: the moving averages of u and of v."""

    x: Tracked
    y: Tracked
    r: Tree
    m: Tree


@dataclass(frozen=True)
class Mdbo:
    """Momentum-based decentralized bilevel optimization: a Neumann series of each agent's own Hessian.

    z_i = scale Σ_{j < terms} (I - scale ∇²₂₂g_i)^j ∇₂f_i; x and y are tracked. No agent hears of the Hessians of
    others, so that z is wrong where they differ. ``scale``: at most 1 over the largest eigenvalue of ∇²₂₂g_i.
    ``theta``: weight of the newest u and v.
    """

    problem: BilevelProblem
    W: torch.Tensor
    alpha: float
    beta: float
    scale: float
    theta: float = 1.0
    terms: int = 10

    def start(self, x: Tree, y: Tree, batch: Tree) -> MdboState:
        """All agents at x and y (one agent's); ``batch`` is not looked at."""
        at_x, at_y = _still(self.W, x), _still(self.W, y)
        return MdboState(at_x, at_y, at_x.t, at_y.t)

    def step(self, state: MdboState, batch: Tree) -> MdboState:
        """One iteration; ``batch`` [n, ...]."""
        x, y, r, m = state
        z = vmap(self._neumann)(x.s, y.s, batch)
        u, v, _ = vmap(self.problem.directions)(x.s, y.s, z, batch)
        r, m = _average(r, u, self.theta), _average(m, v, self.theta)
        return MdboState(_track(self.W, x, self.alpha, r), _track(self.W, y, self.beta, m), r, m)

    def _neumann(self, x: Tree, y: Tree, batch: Tree) -> Tree:
        target = grad(self.problem.upper, argnums=1)(x, y, batch)
        z = tree_map(lambda leaf: self.scale * leaf, target)
        for _ in range(self.terms - 1):
            hessian = self.problem.second_order(x, y, z, batch)[2]
            z = tree_map(lambda z, h, b: z - self.scale * (h - b), z, hessian, target)
        return z


def sldbo(problem: BilevelProblem, W: torch.Tensor, alpha: float, beta: float, gamma: float) -> Sparkle:
    """The single loop with gradient tracking of x, y and z, without a moving average."""
    level = non_atc_tracking(W)
    return Sparkle(problem, level, level, alpha, beta, gamma)


def single_level(problem: BilevelProblem, W: torch.Tensor, beta: float) -> Sparkle:
    """Exact diffusion of the lower level alone: x stays where it starts."""
    level = exact_diffusion(W)
    return Sparkle(problem, level, level, alpha=0.0, beta=beta, gamma=0.0)


@dataclass(frozen=True)
class DMaml:
    """Decentralized MAML: y⁺ = W(y - alpha ∇ mean query(ŷ)), ŷ after ``inner`` steps of ``beta`` down the support loss.

    ``support`` and ``query``: losses of (parameters, one task). The state is y [n, ...]: where learning starts.
    """

    support: Callable[[Tree, Tree], torch.Tensor]
    query: Callable[[Tree, Tree], torch.Tensor]
    W: torch.Tensor
    alpha: float
    beta: float
    inner: int = 1

    def start(self, y: Tree) -> Tree:
        return _still(self.W, y).s

    def step(self, state: Tree, tasks: Tree) -> Tree:
        """One iteration; ``tasks`` [n, tasks, ...]."""

        def loss(y: Tree, tasks: Tree) -> torch.Tensor:
            return vmap(lambda task: self.query(self.adapt(y, task), task))(tasks).mean()

        return STACKED.mix(self.W, tree_map(lambda y, g: y - self.alpha * g, state, vmap(grad(loss))(state, tasks)))

    def adapt(self, y: Tree, task: Tree) -> Tree:
        """One agent's y, learnt on one task."""
        for _ in range(self.inner):
            y = tree_map(lambda y, g: y - self.beta * g, y, grad(self.support)(y, task))
        return y


def _still(W: torch.Tensor, one: Tree) -> Tracked:
    """All agents at ``one``, their trackers at zero."""
    s = tree_map(lambda leaf: leaf.expand(len(W), *leaf.shape).clone(), one)
    zero = tree_map(torch.zeros_like, s)
    return Tracked(s, zero, zero)


def _track(W: torch.Tensor, at: Tracked, step: float, direction: Tree) -> Tracked:
    """t⁺ = W t + direction - last; s⁺ = W s - step t⁺."""
    t = tree_map(lambda mixed, new, last: mixed + new - last, STACKED.mix(W, at.t), direction, at.last)
    return Tracked(tree_map(lambda mixed, t: mixed - step * t, STACKED.mix(W, at.s), t), t, direction)


def _average(old: Tree, new: Tree, theta: float) -> Tree:
    return tree_map(lambda old, new: (1 - theta) * old + theta * new, old, new)
