"""The penalty method against closed forms, and BL-JUST's step against it and against each loss alone."""

from __future__ import annotations

import pytest
import torch

from training.bilevel.problem import BilevelProblem
from training.speech.checks import CLAIMS, alone, gradients, small
from training.speech.penalty import PenaltyDescent, joint_gradients, rising

torch.manual_seed(0)
A = torch.linalg.qr(torch.randn(4, 3, dtype=torch.float64)).Q
B = torch.randn(4, dtype=torch.float64)


def upper(x: torch.Tensor, y: torch.Tensor, batch: None) -> torch.Tensor:
    return 0.5 * (y - B).square().sum() + 0.05 * x.square().sum()


def lower(x: torch.Tensor, y: torch.Tensor, batch: None) -> torch.Tensor:
    return 0.5 * (y - A @ x).square().sum()


def penalised_minimum(gamma: float) -> torch.Tensor:
    """x that minimises min_y f + γ g: y = (B + γ A x)/(1 + γ), which leaves γ/(1+γ) |A x - B|²/2 + 0.05 |x|²."""
    weight = gamma / (1 + gamma)
    return torch.linalg.solve(weight * A.T @ A + 0.1 * torch.eye(3, dtype=torch.float64), weight * A.T @ B)


@pytest.mark.parametrize("gamma", [0.5, 4.0])
def test_penalty_descent_reaches_the_minimum_of_the_penalised_problem(gamma: float) -> None:
    method = PenaltyDescent(BilevelProblem(upper, lower), lr_x=0.3, lr_y=0.3, lr_omega=0.5, inner_steps=2)
    state = method.start(torch.zeros(3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    for _ in range(400):
        state = method.step(state, gamma, None)
    torch.testing.assert_close(state.x, penalised_minimum(gamma), rtol=0, atol=1e-6)
    torch.testing.assert_close(state.omega, A @ state.x, rtol=0, atol=1e-6)


def test_penalised_minima_tend_to_the_bilevel_solution() -> None:
    solution = torch.linalg.solve(A.T @ A + 0.1 * torch.eye(3, dtype=torch.float64), A.T @ B)
    errors = [float((penalised_minimum(gamma) - solution).norm()) for gamma in (1.0, 10.0, 100.0)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_gamma_zero_forgets_the_lower_level() -> None:
    method = PenaltyDescent(BilevelProblem(upper, lower), 1.0, 1.0, 1.0)
    state = method.start(torch.ones(3, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    gradient_x, gradient_y = method.gradients(state, 0.0, None)
    torch.testing.assert_close(gradient_x, 0.1 * state.x)
    torch.testing.assert_close(gradient_y, state.y - B)


def test_bl_just_is_the_penalty_method_with_phi_above_and_theta_psi_below() -> None:
    """f(φ, (θ, ψ)) = L_sup(θ, φ) and g = L_unsup(θ, ψ): the same gradients, ψ's times γ."""
    gamma = 0.3
    phi, theta, psi = (torch.randn(4, dtype=torch.float64) for _ in range(3))

    def supervised(x: torch.Tensor, y: tuple[torch.Tensor, torch.Tensor], batch: None) -> torch.Tensor:
        return (x * y[0]).sin().sum()

    def unsupervised(x: torch.Tensor, y: tuple[torch.Tensor, torch.Tensor], batch: None) -> torch.Tensor:
        return (y[0] - y[1]).square().sum() + y[0].cos().sum()

    method = PenaltyDescent(BilevelProblem(supervised, unsupervised), 1.0, 1.0, 1.0)
    above, below = method.gradients(method.start(phi, (theta, psi)), gamma, None)

    leaves = phi, theta, psi = tuple(leaf.clone().requires_grad_() for leaf in (phi, theta, psi))
    losses = supervised(phi, (theta, psi), None), unsupervised(phi, (theta, psi), None)
    joint_gradients(*losses, gamma, phi=[phi], theta=[theta], psi=[psi])
    leaf_gradients = [leaf.grad for leaf in leaves]
    torch.testing.assert_close(leaf_gradients, [above, below[0], below[1] / gamma])


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_of_the_run(name: str) -> None:
    assert CLAIMS[name]()["holds"]


def test_theta_gets_the_sum_weighted_by_gamma() -> None:
    expected = alone(0)["theta"] + 0.25 * alone(1)["theta"]
    torch.testing.assert_close(gradients(0.25)["theta"], expected, rtol=1e-5, atol=1e-7)


def test_a_penalty_added_as_a_number_has_no_gradient() -> None:
    """The defect of the older public code."""
    model, upper_loss, lower_loss = small()
    theta = list(model.encoder.parameters())
    broken = torch.autograd.grad(upper_loss + 1.0 * lower_loss.item(), theta)
    torch.testing.assert_close(
        torch.cat([gradient.flatten() for gradient in broken]), gradients(0.0)["theta"], rtol=0, atol=0
    )


def test_gamma_rises_to_its_cap() -> None:
    assert [rising(0.25, 0.6, k) for k in range(5)] == [0, 0.25, 0.5, 0.6, 0.6]


def test_the_second_penalty_is_half_the_squared_norm_of_the_lower_gradient() -> None:
    """L_unsup = ½ |Q θ|² + a·ψ: its gradient is (QᵀQ θ, a), and that of ½ |gradient|² is ((QᵀQ)² θ, 0)."""
    torch.manual_seed(1)
    q, a = torch.randn(4, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    theta, phi = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    psi = torch.randn(3, dtype=torch.float64, requires_grad=True)
    supervised, unsupervised = theta @ phi, (q @ theta).square().sum() / 2 + a @ psi
    joint_gradients(supervised, unsupervised, 0.3, phi=[phi], theta=[theta], psi=[psi], penalty="norm")
    square = q.T @ q
    torch.testing.assert_close(theta.grad, phi.detach() + 0.3 * square @ square @ theta.detach())
    torch.testing.assert_close(phi.grad, theta.detach())
    torch.testing.assert_close(psi.grad, torch.zeros(3, dtype=torch.float64))
