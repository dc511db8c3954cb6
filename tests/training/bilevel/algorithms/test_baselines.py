"""The baselines against closed forms: exact on heterogeneous quadratics, or with a known error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from training.bilevel import topology
from training.bilevel.algorithms.ma_dsbo_gt import MaDsboGt
from training.bilevel.algorithms.maml import DMaml
from training.bilevel.algorithms.mdbo import Mdbo
from training.bilevel.algorithms.method import Algorithm
from training.bilevel.algorithms.single_level import single_level
from training.bilevel.algorithms.sldbo import sldbo
from training.bilevel.algorithms.sparkle import diffusion
from training.bilevel.problem import Tree
from training.bilevel.problems import quadratic
from training.bilevel.problems.quadratic import PROBLEM, Quadratic

AGENTS = 8
RING = topology.ring(AGENTS, self_weight=0.5)
ORIGIN = torch.zeros(3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
MDBO = Mdbo(PROBLEM, RING, alpha=0.1, beta=0.2, scale=0.6, terms=14)


@pytest.fixture(scope="module")
def agents() -> Quadratic:
    return quadratic.draw(AGENTS, x_size=3, y_size=4, heterogeneity=1.0, seed=0)


def end(algorithm: Algorithm, agents: Quadratic, steps: int) -> Tree:
    state, generator = algorithm.start(*ORIGIN, agents), torch.Generator()
    for _ in range(steps):
        state = algorithm.step(state, agents, generator)
    return state


def squared_error(x: torch.Tensor, agents: Quadratic) -> float:
    return float((x - quadratic.solution(agents)).square().sum())


@pytest.mark.slow(6)
def test_tracked_baselines_solve_heterogeneous_quadratics(agents: Quadratic) -> None:
    double = end(MaDsboGt(PROBLEM, RING, alpha=0.1, beta=0.3, gamma=0.3, inner=2), agents, 250)
    assert squared_error(double.x.s, agents) <= 1e-9
    single = end(sldbo(PROBLEM, RING, alpha=0.1, beta=0.2, gamma=0.2), agents, 400)
    assert squared_error(single.x, agents) <= 1e-9


@pytest.mark.slow(8)
def test_mdbo_solves_what_agents_share_and_is_wrong_where_hessians_differ(agents: Quadratic) -> None:
    alike = agents._replace(H=agents.H[:1].expand_as(agents.H), A=agents.A[:1].expand_as(agents.A))
    assert squared_error(end(MDBO, alike, 200).x.s, alike) <= 1e-6  # b, c and e still differ
    x = end(MDBO, agents, 200).x.s
    # it rests where the mean of x - e_i + A_iᵀ H_i⁻¹ (y* - c_i) is zero
    y = quadratic.lower_solution(agents, x[0])
    z = torch.linalg.solve(agents.H, y - agents.c)
    rest = (x[0] - agents.e + torch.einsum("nij,ni->nj", agents.A, z)).mean(0)
    assert float(rest.norm()) < 1e-3
    assert squared_error(x, agents) > 0.1


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_mdbo_sums_as_many_terms_of_the_series_as_it_says(terms: int, agents: Quadratic) -> None:
    """At z_0 the gradient of f is y - c, so that the sum is Σ_j scale (I - scale H)^j (y - c)."""
    agent, y = Quadratic(*(leaf[0] for leaf in agents)), ORIGIN[1] + 1
    step = torch.eye(4, dtype=torch.float64) - 0.6 * agent.H
    expected = sum(0.6 * step.matrix_power(j) @ (y - agent.c) for j in range(terms))
    torch.testing.assert_close(replace(MDBO, terms=terms)._neumann(ORIGIN[0], y, agent), expected)


def test_single_level_solves_the_lower_level_and_leaves_x(agents: Quadratic) -> None:
    state = end(single_level(PROBLEM, RING, beta=0.2), agents, 250)
    assert float((state.y - quadratic.lower_solution(agents, ORIGIN[0])).abs().max()) < 1e-8
    assert float(state.x.abs().max()) < 1e-15


def test_maml_is_gradient_descent_through_a_gradient_step() -> None:
    generator = torch.Generator().manual_seed(0)
    H, b, c = (torch.randn(AGENTS, 5, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    tasks = {"H": H.square(), "b": b, "c": c}  # 5 tasks an agent, H diagonal
    maml = DMaml(
        support=lambda y, task: (task["H"] * y.square() / 2 - task["b"] * y).sum(),
        query=lambda y, task: (y - task["c"]).square().sum() / 2,
        W=RING,
        alpha=0.1,
        beta=0.2,
    )
    state = maml.step(maml.start(torch.ones(3, dtype=torch.float64)), tasks)
    adapted = 1 - 0.2 * (H.square() - b)
    slope = ((1 - 0.2 * H.square()) * (adapted - c)).mean(1)
    torch.testing.assert_close(state, RING @ (1 - 0.1 * slope), rtol=1e-12, atol=1e-12)


def test_sldbo_is_tracking_written_out(agents: Quadratic) -> None:
    """Against MA-DSBO-GT's own tracker: one variable, alpha = 0, so that only y moves."""
    ours = end(sldbo(PROBLEM, RING, alpha=0.0, beta=0.2, gamma=0.2), agents, 40)
    tracked = end(MaDsboGt(PROBLEM, RING, alpha=0.0, beta=0.2, gamma=0.2, inner=1), agents, 40)
    torch.testing.assert_close(ours.y, tracked.y.s, rtol=0, atol=1e-12)
    assert not torch.allclose(ours.y, end(single_level(PROBLEM, diffusion(RING).A, 0.2), agents, 40).y, atol=1e-6)
