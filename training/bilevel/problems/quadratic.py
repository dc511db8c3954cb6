"""Heterogeneous quadratics with a known solution."""

from __future__ import annotations

from typing import NamedTuple

import torch

from training.bilevel.problem import BilevelProblem


class Quadratic(NamedTuple):
    """f = ½‖y - c‖² + ½ weight ‖x - e‖² and g = ½ y·Hy - y·(Ax + b), of one agent, or of n with a leading axis n.

    H [m, m], A [m, d], b [m], c [m], e [d], weight [].
    """

    H: torch.Tensor
    A: torch.Tensor
    b: torch.Tensor
    c: torch.Tensor
    e: torch.Tensor
    weight: torch.Tensor


def upper(x: torch.Tensor, y: torch.Tensor, agent: Quadratic) -> torch.Tensor:
    return ((y - agent.c).square().sum() + agent.weight * (x - agent.e).square().sum()) / 2


def lower(x: torch.Tensor, y: torch.Tensor, agent: Quadratic) -> torch.Tensor:
    return y @ agent.H @ y / 2 - y @ (agent.A @ x + agent.b)


PROBLEM = BilevelProblem(upper, lower)


def draw(agents: int, *, x_size: int, y_size: int, heterogeneity: float, seed: int) -> Quadratic:
    """Agents with different H, A, b, c and e and weight 1, float64; H has eigenvalues in [1, 2].

    ``heterogeneity``: the standard deviation of b, c and e over agents; A varies with half of it.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(agents, y_size, y_size)).Q
    eigenvalues = 1 + torch.rand(agents, y_size, generator=generator, dtype=torch.float64)
    return Quadratic(
        H=torch.einsum("nij,nj,nkj->nik", basis, eigenvalues, basis),
        A=(normal(y_size, x_size) + heterogeneity / 2 * normal(agents, y_size, x_size)) / x_size**0.5,
        b=normal(y_size) + heterogeneity * normal(agents, y_size),
        c=normal(y_size) + heterogeneity * normal(agents, y_size),
        e=normal(x_size) + heterogeneity * normal(agents, x_size),
        weight=torch.ones(agents, dtype=torch.float64),
    )


def noisy(agents: Quadratic, noise: float, generator: torch.Generator) -> Quadratic:
    """A batch with the gradients of ``agents`` plus independent Gaussian noise on ∇₂g, ∇₁f and ∇₂f.

    Adds normal errors of standard deviation ``noise`` to each coordinate of b, c and e of each agent.
    """
    if not noise:
        return agents

    def with_error(leaf: torch.Tensor) -> torch.Tensor:
        return leaf + noise * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)

    return agents._replace(b=with_error(agents.b), c=with_error(agents.c), e=with_error(agents.e))


def lower_solution(agents: Quadratic, x: torch.Tensor) -> torch.Tensor:
    """y*(x) [m], the minimiser of the agents' mean g."""
    mean = _mean(agents)
    return torch.linalg.solve(mean.H, mean.A @ x + mean.b)


def hypergradient(agents: Quadratic, x: torch.Tensor) -> torch.Tensor:
    """∇Φ(x) [d] of Φ(x) = mean f(x, y*(x)), in closed form."""
    mean = _mean(agents)
    adjoint = torch.linalg.solve(mean.H, lower_solution(agents, x) - mean.c)
    return mean.weight * x - (agents.weight[:, None] * agents.e).mean(0) + mean.A.T @ adjoint


def solution(agents: Quadratic) -> torch.Tensor:
    """x* [d], the root of ∇Φ, which is affine."""
    zero = torch.zeros_like(agents.e[0])
    offset = hypergradient(agents, zero)
    columns = [hypergradient(agents, unit) - offset for unit in torch.eye(len(zero), dtype=zero.dtype)]
    return torch.linalg.solve(torch.stack(columns, dim=1), -offset)


def _mean(agents: Quadratic) -> Quadratic:
    return Quadratic(*(leaf.mean(0) for leaf in agents))
