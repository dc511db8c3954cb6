"""The penalty method: descend f(x, y) + γ (g(x, y) - min_ω g(x, ω)) and let γ grow.

As γ grows, (x, y) tends to a solution of min f s.t. y ∈ argmin g(x, ·). The method needs first derivatives only, and no
convexity of g in y.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch.func import grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from training.bilevel.problem import BilevelProblem, Tree

Penalty = Literal["value", "norm"]


class PenaltyState(NamedTuple):
    """``omega``, like y, approaches argmin g(x, ·)."""

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
        """Gradients of the penalised objective in x and in y, without the factor min(1/γ, 1)."""

        def penalised(x: Tree, y: Tree) -> torch.Tensor:
            f, g = self.problem.upper, self.problem.lower
            return f(x, y, batch) + gamma * (g(x, y, batch) - g(x, state.omega, batch))

        gradient_x, gradient_y = grad(penalised, argnums=(0, 1))(state.x, state.y)
        return gradient_x, gradient_y

    def step(self, state: PenaltyState, gamma: float, batch: Tree) -> PenaltyState:
        omega = state.omega
        for _ in range(self.inner_steps):
            omega = _descend(omega, self.lr_omega, grad(self.problem.lower, argnums=1)(state.x, omega, batch))
        state = state._replace(omega=omega)
        gradient_x, gradient_y = self.gradients(state, gamma, batch)
        scale = min(1 / gamma, 1.0) if gamma > 0 else 1.0
        return PenaltyState(
            _descend(state.x, scale * self.lr_x, gradient_x), _descend(state.y, scale * self.lr_y, gradient_y), omega
        )


def rising(step: float, cap: float, k: int) -> float:
    """γ_k of epoch k = 0, 1, …: min(cap, k · step)."""
    return min(cap, k * step)


def joint_gradients(
    upper: torch.Tensor,
    lower: torch.Tensor,
    gamma: float,
    *,
    phi: Sequence[torch.Tensor],
    theta: Sequence[torch.Tensor],
    psi: Sequence[torch.Tensor],
    penalty: Penalty = "value",
) -> None:
    """Sets ``.grad`` for BL-JUST: of θ ∇(L_sup + γ p), of φ ∇L_sup, of ψ ∇p, with the penalty p = L_unsup
    (arXiv:2412.08548) or, "norm", ½ ‖∇_{θ,ψ} L_unsup‖² (arXiv:2302.05185's second penalty).

    The first is the gradient of `PenaltyDescent` at x = φ, y = (θ, ψ): g does not depend on x, so that the value at ω
    cancels. The gradient of ψ is not multiplied by γ. ``upper`` must not depend on ψ, nor ``lower`` on φ; for "norm",
    ``lower`` must have been computed within `twice_differentiable`.
    """
    lower_parameters = [*theta, *psi]
    if penalty == "norm":
        slopes = torch.autograd.grad(lower, lower_parameters, create_graph=True)
        lower = torch.stack([slope.square().sum() for slope in slopes]).sum() / 2
    from_upper = torch.autograd.grad(upper, [*theta, *phi])
    from_lower = torch.autograd.grad(lower, lower_parameters, materialize_grads=penalty == "norm")
    n = len(theta)
    for parameter, a, b in zip(theta, from_upper, from_lower, strict=False):
        parameter.grad = a + gamma * b
    for parameter, gradient in zip([*phi, *psi], [*from_upper[n:], *from_lower[n:]], strict=True):
        parameter.grad = gradient


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Without the kernels of recurrent layers and of attention that have no second derivative."""
    onednn = torch.backends.mkldnn  # its flags() would warn of what only Intel's GPUs have
    (fused, *_) = onednn.set_flags(False, _fp32_precision=None)
    try:
        with torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        onednn.set_flags(fused, _fp32_precision=None)


def _descend(tree: Tree, step: float, gradient: Tree) -> Tree:
    return tree_map(lambda value, slope: value - step * slope, tree, gradient)
