"""The penalty method: descend f(x, y) + γ (g(x, y) - min_ω g(x, ω)) and let γ grow.

Where y minimises g to the penalty's last fraction, (x, y) solves min f s.t. y ∈ argmin g(x, ·). Only first derivatives
are needed, and g need not be convex in y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.func import grad
from torch.utils._pytree import tree_map

from training.bilevel.problem import BilevelProblem

Tree = Any


class PenaltyState(NamedTuple):
    """``omega``, like y, follows argmin g(x, ·)."""

    x: Tree
    y: Tree
    omega: Tree


@dataclass(frozen=True)
class PenaltyDescent:
    """Penalty-based bilevel gradient descent (Shen and Chen, arXiv:2302.05185), value-function penalty.

    A step: ω takes ``inner_steps`` of size ``lr_omega`` on g(x, ·); then x and y, by ``lr_x`` and ``lr_y``, descend
    min(1/γ, 1) (f(x, y) + γ (g(x, y) - g(x, ω))), ω held fixed.
    """

    problem: BilevelProblem
    lr_x: float
    lr_y: float
    lr_omega: float
    inner_steps: int = 1

    def start(self, x: Tree, y: Tree) -> PenaltyState:
        return PenaltyState(x, y, y)

    def gradients(self, state: PenaltyState, gamma: float, batch: Tree) -> tuple[Tree, Tree]:
        """Of the penalised objective at (x, y), like x and like y; the factor min(1/γ, 1) is not in them."""

        def penalised(x: Tree, y: Tree) -> torch.Tensor:
            f, g = self.problem.upper, self.problem.lower
            return f(x, y, batch) + gamma * (g(x, y, batch) - g(x, state.omega, batch))

        found: Any = grad(penalised, argnums=(0, 1))(state.x, state.y)
        return found

    def step(self, state: PenaltyState, gamma: float, batch: Tree) -> PenaltyState:
        omega = state.omega
        for _ in range(self.inner_steps):
            omega = _descend(omega, self.lr_omega, grad(self.problem.lower, argnums=1)(state.x, omega, batch))
        state = state._replace(omega=omega)
        along_x, along_y = self.gradients(state, gamma, batch)
        scale = min(1 / gamma, 1.0) if gamma > 0 else 1.0
        return PenaltyState(
            _descend(state.x, scale * self.lr_x, along_x), _descend(state.y, scale * self.lr_y, along_y), omega
        )


def rising(step: float, cap: float, k: int) -> float:
    """γ_k of epoch k = 0, 1, …: 0, and ``step`` more each epoch up to ``cap``."""
    return min(cap, k * step)


def joint_gradients(
    upper: torch.Tensor,
    lower: torch.Tensor,
    gamma: float,
    *,
    phi: Sequence[torch.Tensor],
    theta: Sequence[torch.Tensor],
    psi: Sequence[torch.Tensor],
) -> None:
    """Set ``.grad`` for BL-JUST: θ gets ∇(L_sup + γ L_unsup), φ gets ∇L_sup, ψ gets ∇L_unsup (arXiv:2412.08548).

    It is the gradient of `PenaltyDescent` at x = φ, y = (θ, ψ), where g does not depend on x and the value at ω
    drops out; ψ's is not multiplied by γ. ``upper`` must not depend on ψ, nor ``lower`` on φ.
    """
    from_upper = torch.autograd.grad(upper, [*theta, *phi])
    from_lower = torch.autograd.grad(lower, [*theta, *psi])
    n = len(theta)
    for parameter, a, b in zip(theta, from_upper, from_lower, strict=False):
        parameter.grad = a + gamma * b
    for parameter, found in zip([*phi, *psi], [*from_upper[n:], *from_lower[n:]], strict=True):
        parameter.grad = found


def _descend(tree: Tree, step: float, along: Tree) -> Tree:
    return tree_map(lambda value, direction: value - step * direction, tree, along)
