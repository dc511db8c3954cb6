"""Hypergradients against closed forms and finite differences, in float64."""

from __future__ import annotations

import pytest
import torch

from training.bilevel.problem import BilevelProblem
from training.bilevel.problems import quadratic
from training.bilevel.problems.quadratic import PROBLEM, Quadratic


@pytest.fixture
def agent() -> Quadratic:
    """The only agent of its problem."""
    agents = quadratic.draw(1, x_size=3, y_size=5, heterogeneity=1.0, seed=0)
    return Quadratic(*(leaf[0] for leaf in agents))


def stack(agent: Quadratic) -> Quadratic:
    return Quadratic(*(leaf[None] for leaf in agent))


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_directions_are_the_derivatives_written_out(agent: Quadratic) -> None:
    x, y, z = normal(3, seed=1), normal(5, seed=2), normal(5, seed=3)
    u, v, p = PROBLEM.directions(x, y, z, agent)
    torch.testing.assert_close(u, x - agent.e + agent.A.T @ z, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(v, agent.H @ y - agent.A @ x - agent.b, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(p, agent.H @ z - (y - agent.c), rtol=1e-13, atol=1e-13)


def test_hypergradient_is_the_closed_form(agent: Quadratic) -> None:
    x = normal(3, seed=1)
    y = quadratic.lower_solution(stack(agent), x)
    ours = PROBLEM.hypergradient(x, y, agent)
    torch.testing.assert_close(ours, quadratic.hypergradient(stack(agent), x), rtol=1e-11, atol=1e-11)


def test_the_closed_form_vanishes_at_the_solution_and_is_the_slope_elsewhere() -> None:
    agents = quadratic.draw(4, x_size=3, y_size=5, heterogeneity=1.0, seed=0)
    assert quadratic.hypergradient(agents, quadratic.solution(agents)).norm() < 1e-12

    def phi(x: torch.Tensor) -> torch.Tensor:
        y = quadratic.lower_solution(agents, x)
        return torch.func.vmap(quadratic.upper, in_dims=(None, None, 0))(x, y, agents).mean()

    x = normal(3, seed=1)
    torch.testing.assert_close(quadratic.hypergradient(agents, x), torch.func.grad(phi)(x), rtol=1e-12, atol=1e-12)


def softplus_lower(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor], data: torch.Tensor) -> torch.Tensor:
    """Logistic regression with a learnt ridge for each weight and a learnt shift of the logits."""
    logits = data @ y["weights"] + y["bias"] + x["shift"]
    ridge = (x["log_ridge"].exp() * y["weights"].square()).sum() + y["bias"].square()
    return torch.nn.functional.softplus(logits).mean() - 0.3 * logits.mean() + ridge


def upper(x: dict[str, torch.Tensor], y: dict[str, torch.Tensor], data: torch.Tensor) -> torch.Tensor:
    return (data @ y["weights"] + y["bias"]).sin().mean() + x["shift"].square() / 2


def test_hypergradient_of_pytrees_is_the_finite_difference() -> None:
    problem, data = BilevelProblem(upper, softplus_lower), normal(12, 4, seed=4)
    x = {"log_ridge": normal(4, seed=5) - 1, "shift": normal(seed=6)}

    def solve(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """y*(x) by Newton's method on the flat lower problem."""

        def flat(y: torch.Tensor) -> torch.Tensor:
            return softplus_lower(x, {"weights": y[:4], "bias": y[4]}, data)

        y = torch.zeros(5, dtype=torch.float64)
        for _ in range(30):
            y = y - torch.linalg.solve(torch.func.hessian(flat)(y), torch.func.grad(flat)(y))
        return {"weights": y[:4], "bias": y[4]}

    def phi(x: dict[str, torch.Tensor]) -> float:
        return float(upper(x, solve(x), data))

    ours, step = problem.hypergradient(x, solve(x), data), 1e-5
    for name, leaf in x.items():
        for i in range(leaf.numel()):
            nudge = torch.zeros(leaf.numel(), dtype=torch.float64)
            nudge[i] = step
            above, below = ({**x, name: leaf + sign * nudge.view(leaf.shape)} for sign in (1, -1))
            slope = (phi(above) - phi(below)) / (2 * step)
            assert float(ours[name].reshape(-1)[i]) == pytest.approx(slope, rel=1e-6, abs=1e-9)
