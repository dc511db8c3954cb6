"""The gradient flow of linear in-context learning: proofs in sympy, parity, the run's golden numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from theory.gradient_flow.critical import find
from theory.gradient_flow.instances import InstanceI, InstanceII, one_dimensional
from theory.gradient_flow.job import JOB
from theory.gradient_flow.system import estimated_moments, flow, gaussian_moments, linear_regression

N, LAMBDA = sp.symbols("n lambda", positive=True)
P, V, U, Q = sp.symbols("p v U q", real=True)
FOUR = (P, V, U, Q)
GAMMA = LAMBDA * (1 + 2 / N)


def loss_two() -> sp.Expr:
    """Instance II's loss, from the moments of S = Σx²/n, x_q and w."""
    S, x, w = sp.symbols("S x w")
    H = [[S + x**2 / N, w * S], [w * S, w**2 * S]]
    prediction = (P * H[0][0] + V * H[0][1]) * U * x + (P * H[0][1] + V * H[1][1]) * Q * x
    gaussian = {0: 1, 2: 1, 4: 3, 6: 15}
    means = {0: 1, 1: LAMBDA, 2: LAMBDA**2 * (1 + 2 / N)}
    total = sp.Integer(0)
    for (i, j, k), factor in sp.Poly(sp.expand((prediction - w * x) ** 2 / 2), S, x, w).terms():
        total += factor * means[i] * gaussian.get(j, 0) * sp.sqrt(LAMBDA) ** j * gaussian.get(k, 0)
    return sp.expand(total)


def gradient(loss: sp.Expr, variables: tuple[Any, ...]) -> sp.Matrix:
    return sp.Matrix([sp.diff(loss, variable) for variable in variables])


def test_invariants_of_any_data_have_zero_derivative() -> None:
    # The residual G = B − M·(v ⊗ W) is left a free symbol: what follows holds for any moments.
    d, rank = 2, 2
    G = [[[sp.Symbol(f"g{a}{b}{c}") for c in range(d)] for b in range(d + 1)] for a in range(d + 1)]
    v = sp.Matrix(sp.symbols(f"v:{d + 1}"))
    W = sp.Matrix(d + 1, d, sp.symbols(f"w:{(d + 1) * d}"))
    K, Q2 = sp.Matrix(rank, d + 1, sp.symbols("k:6")), sp.Matrix(rank, d, sp.symbols("q:4"))
    D = sp.Matrix(d + 1, d, lambda b, c: sum(G[a][b][c] * v[a] for a in range(d + 1)))

    def dv(W: sp.Matrix) -> sp.Matrix:
        return sp.Matrix([sum(G[a][b][c] * W[b, c] for b in range(d + 1) for c in range(d)) for a in range(d + 1)])

    assert sp.expand((v.T * dv(W))[0] - (W.T * D).trace()) == 0
    dK, dQ = Q2 * D.T, K * D
    assert (dK * K.T + K * dK.T - dQ * Q2.T - Q2 * dQ.T).applyfunc(sp.expand) == sp.zeros(rank)
    assert sp.expand((v.T * dv(K.T * Q2))[0] - (K.T * dK).trace()) == 0


@pytest.mark.slow(6)
def test_instance_one_is_proved() -> None:
    d = 2
    u, n = sp.symbols("u n", positive=True)
    matrix = sp.Matrix(d, d, sp.symbols("U:4", real=True))
    L = sp.Matrix([[sp.Symbol("a"), sp.Symbol("b")], [sp.Symbol("b"), sp.Symbol("c")]])
    G = (1 + 1 / n) * L + L.trace() / n * sp.eye(d)
    curvature, pull = (G * L * matrix * L * matrix.T).trace(), (L**2 * matrix.T).trace()
    loss = L.trace() / 2 + u**2 * curvature / 2 - u * pull
    force = L**2 - u * G * L * matrix * L
    flow_u = -sp.diff(loss, u)
    flow_U = -sp.Matrix(d, d, lambda i, j: sp.diff(loss, matrix[i, j]))
    assert (flow_U - u * force).applyfunc(sp.simplify) == sp.zeros(d)
    assert sp.simplify(flow_u - (force * matrix.T).trace()) == 0
    assert sp.simplify(u * flow_u - (matrix.T * flow_U).trace()) == 0  # u² − ‖U‖² is invariant
    best = dict(zip(matrix, G.inv() / u, strict=True))
    assert sp.simplify(force.subs(best)) == sp.zeros(d)
    assert sp.simplify(loss.subs(best) - (L.trace() - (L**2 * G.inv()).trace()) / 2) == 0
    # The Hessian at u = 0 is an arrow: a, −Λ² on its border, zeros: λ³(λ² − aλ − tr Λ⁴) is its polynomial.
    variables = (u, *matrix)
    hessian = sp.hessian(loss, variables).subs(u, 0)
    x = sp.Symbol("x")
    expected = x**3 * (x**2 - curvature * x - (L**4).trace())
    assert sp.simplify(hessian.charpoly(x).as_expr() - sp.expand(expected)) == 0


def test_one_dimensional_flow_is_proved() -> None:
    u, w = sp.symbols("u U", real=True)
    force = LAMBDA**2 - u * w * LAMBDA**2 * GAMMA
    derivative = u * (u * force) + w * (w * force)
    c, product = u**2 - w**2, u * w
    speed = LAMBDA**2 * (1 - GAMMA * product)
    assert sp.expand(derivative**2 - (c**2 + 4 * product**2) * speed**2) == 0


def test_instance_two_is_proved() -> None:
    loss = loss_two()
    closed = InstanceII(1.3, 7).loss(np.array([0.3, -0.8, 0.5, 1.1]))
    values = {LAMBDA: sp.Rational(13, 10), N: 7, P: sp.Rational(3, 10), V: -sp.Rational(8, 10), U: sp.Rational(1, 2)}
    assert float(loss.subs(values).subs(Q, sp.Rational(11, 10))) == pytest.approx(closed, abs=1e-14)
    slope = gradient(loss, FOUR)
    assert sp.expand(P * slope[0] + V * slope[1] - U * slope[2] - Q * slope[3]) == 0
    for family in ({P: 0, Q: 0, U: 1 / (GAMMA * V)}, {V: 0, U: 0, Q: 1 / (GAMMA * P)}):
        assert slope.subs(family).applyfunc(sp.simplify) == sp.zeros(4, 1)
        assert sp.simplify(loss.subs(family) - LAMBDA / (N + 2)) == 0


def test_hessian_indices_of_instance_two_are_zero_one_and_two() -> None:
    loss = loss_two().subs({N: 10, LAMBDA: 1})
    hessian = sp.hessian(loss, FOUR)
    X, saddle_loss = InstanceII(1.0, 10).mixed_saddle
    assert (X, saddle_loss) == (pytest.approx(0.1527, abs=5e-5), pytest.approx(0.34732, abs=5e-6))
    saddle = dict(zip(FOUR, InstanceII(1.0, 10).mixed_saddle_point, strict=True))
    assert max(abs(float(slope)) for slope in gradient(loss, FOUR).subs(saddle)) < 1e-14
    best = {P: 0, Q: 0, V: 1, U: sp.Rational(5, 6)}
    for point, index, flat in ((best, 0, 1), (saddle, 1, 1), (dict.fromkeys(FOUR, 0), 2, 0)):
        values = np.linalg.eigvalsh(np.array(hessian.subs(point), dtype=float))
        assert ((values < -1e-9).sum(), (np.abs(values) <= 1e-9).sum()) == (index, flat)


def test_the_mixed_saddle_is_the_only_critical_point_with_both_products() -> None:
    # In X = vU, Y = pq and A = p²U² > 0 (q²v² = X²Y²/A) the loss is stationary in A at A = |XY|√(3a/c); what is left:
    a, c, e, X, Y, A = sp.symbols("a c e X Y A", positive=True)
    rest = LAMBDA**3 * (c * A / 2 + 3 * a * X**2 * Y**2 / (2 * A))
    assert sp.simplify(sp.diff(rest, A).subs(A, X * Y * sp.sqrt(3 * a / c))) == 0
    reduced = LAMBDA / 2 - LAMBDA**2 * (X + Y) + LAMBDA**3 * (a * (X**2 + Y**2) / 2 + X * Y * (sp.sqrt(3 * a * c) + e))
    (solution,) = sp.solve([sp.diff(reduced, X), sp.diff(reduced, Y)], [X, Y], dict=True)
    expected = 1 / (LAMBDA * (a + e + sp.sqrt(3 * a * c)))
    assert sp.simplify(solution[X] - expected) == sp.simplify(solution[Y] - expected) == 0
    assert sp.simplify(reduced.subs(solution) - (LAMBDA / 2 - LAMBDA**2 * expected)) == 0


class Product:
    """L = (xy − 1)² / 2: a curve of minima xy = 1, along which it is flat, and a saddle at 0."""

    def loss(self, theta: Any) -> Any:
        return (theta[..., 0] * theta[..., 1] - 1) ** 2 / 2

    def velocity(self, theta: np.ndarray) -> np.ndarray:
        return -(theta[..., :1] * theta[..., 1:] - 1) * theta[..., ::-1]


def test_critical_points_are_classed_by_loss_and_index_and_flat_directions_count_in_neither() -> None:
    starts = np.random.default_rng(0).standard_normal((20, 2))
    minima, saddle = find(Product(), starts)
    assert (minima.loss, minima.index, minima.flat) == (pytest.approx(0, abs=1e-12), 0, 1)
    assert (saddle.loss, saddle.index, saddle.flat) == (0.5, 1, 0)
    assert saddle.eigenvalues == pytest.approx([-1, 1]) and np.prod(minima.point) == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.floats(0.2, 2.0), st.lists(st.floats(-1.5, 1.5), min_size=4, max_size=4))
def test_the_full_system_in_one_dimension_is_instance_two(n: int, variance: float, theta: list[float]) -> None:
    two, full = InstanceII(variance, n), gaussian_moments(np.array([[variance]]), n)
    point = np.array(theta)
    assert full.loss(point[:2], point[2:, None]) == pytest.approx(two.loss(point), rel=1e-11, abs=1e-11)
    assert np.allclose(full.velocity(point), two.velocity(point), rtol=1e-10, atol=1e-10)


def test_instance_one_is_invariant_under_the_full_system() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((2, 2))
    instance, full = InstanceI(root @ root.T + 0.3 * np.eye(2), 5), gaussian_moments(root @ root.T + 0.3 * np.eye(2), 5)
    theta = rng.standard_normal(5)
    v, W = np.array([0, 0, theta[0]]), np.vstack([theta[1:].reshape(2, 2), np.zeros((1, 2))])
    assert full.loss(v, W) == pytest.approx(instance.loss(theta), rel=1e-12)
    moved = full.velocity(np.concatenate([v, W.ravel()]))
    expected = instance.velocity(theta)
    assert np.allclose(moved[2:7], np.concatenate([expected[:1], expected[1:]]))
    assert np.allclose(np.delete(moved, range(2, 7)), 0)


def test_estimated_moments_converge_to_the_exact_ones() -> None:
    covariance = np.diag([0.5, 1.0])
    exact = gaussian_moments(covariance, 10)
    estimated = estimated_moments(linear_regression(covariance, 10), np.random.default_rng(0), 60_000)
    assert np.abs(estimated.B - exact.B).max() < 0.05
    assert np.abs(estimated.M - exact.M).max() < 0.3
    assert np.abs(estimated.M - exact.M).mean() < 0.01


def test_keys_and_queries_flow_downhill_and_keep_their_invariants() -> None:
    moments = gaussian_moments(np.diag([0.5, 1.0]), 10)
    start = 0.3 * np.random.default_rng(0).standard_normal((3, 18))
    path = flow(lambda theta: moments.keys_queries_velocity(theta, 3), start, np.linspace(0, 20, 41))
    K, Q2 = path[..., 3:12].reshape(41, 3, 3, 3), path[..., 12:].reshape(41, 3, 3, 2)
    invariant = K @ K.swapaxes(2, 3) - Q2 @ Q2.swapaxes(2, 3)
    loss = moments.loss(path[..., :3], K.swapaxes(2, 3) @ Q2)
    assert np.abs(invariant - invariant[:1]).max() < 1e-9
    assert (np.diff(loss, axis=0) < 1e-9).all() and (loss[-1] < 0.5 * loss[0]).all()


def test_only_the_balanced_negative_branch_ends_at_the_saddle() -> None:
    speed = one_dimensional(0.0, 1.0, 10)
    end = flow(speed, np.array([[-0.5], [0.5]]), np.array([0.0, 30.0]))[-1, :, 0]
    assert end[0] == pytest.approx(0, abs=1e-6) and end[1] == pytest.approx(1 / 1.2)
    tilted = flow(one_dimensional(0.01, 1.0, 10), np.array([[-0.5]]), np.array([0.0, 30.0]))[-1, 0, 0]
    assert tilted == pytest.approx(1 / 1.2)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"spectrum": [1.0, 0.0]}, "spectrum must be positive numbers"),
        ({"spectrum": [1.0]}, "spectrum must be positive numbers, two or more"),
        ({"starts": 3}, "starts\n  Input should be greater than or equal to 4"),
        ({"scales": []}, "scales\n  Tuple should have at least 1 item"),
        ({"prompts": 19}, "prompts\n  Input should be greater than or equal to 20"),  # the moments of no prompt are NaN
        ({"n": 0}, "n\n  Input should be greater than 0"),
        ({"variance": -1}, "variance\n  Input should be greater than 0"),
        ({"studies": ["phases"]}, "no study phases; there are flows"),
    ],
)
def test_bad_input_says_what_to_change(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        JOB.Config.model_validate(bad)


@pytest.mark.parametrize("scales", [(1e-26, 1e-27, 1e-28), (1e-2,)])
def test_flows_that_do_not_escape_have_no_time_and_too_few_scales_no_slope(
    scales: tuple[float, ...], tmp_path: Path
) -> None:
    result = JOB.execute({"scales": scales, "studies": ["escape"], "repeats": 3}, tmp_path)
    escape = result["studies"]["escape"]
    assert escape["slope"]["mean"] is None and not result["checks"][0]["holds"]
    assert all(time is None or time > 0 for time in escape["time"]["mean"])
    assert (tmp_path / "figures" / "escape.png").exists()


def test_a_small_variance_slows_the_flows_and_refutes_nothing(tmp_path: Path) -> None:
    result = JOB.execute({"variance": 0.3, "flows": 6, "studies": ["flows"]}, tmp_path)
    assert all(check["holds"] for check in result["checks"]), result["checks"]
    assert result["studies"]["flows"]["II"]["times"][-1] == pytest.approx(90 / 0.3**2)


@pytest.mark.slow(2)
def test_two_rates_are_drawn_without_a_slope(tmp_path: Path) -> None:
    result = JOB.execute({"rates": (0.04, 0.02), "repeats": 2, "batch": 32, "studies": ["sgd"]}, tmp_path)
    assert result["studies"]["sgd"]["slope"]["mean"] is None and (tmp_path / "figures" / "sgd.png").exists()


def test_an_indefinite_covariance_is_refused() -> None:
    with pytest.raises(ValueError, match="symmetric and positive definite"):
        gaussian_moments(np.diag([1.0, -1.0]), 10)


@pytest.mark.slow(12)
def test_the_smoke_run_holds_its_golden_numbers(tmp_path: Path) -> None:
    result = JOB.execute(JOB.presets["smoke"], tmp_path)
    assert len(result["checks"]) >= 15
    assert all(check["holds"] for check in result["checks"]), [c for c in result["checks"] if not c["holds"]]
    figure_names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert figure_names == {*result["studies"], "gallery"}
