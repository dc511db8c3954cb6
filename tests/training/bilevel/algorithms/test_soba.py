"""Compressed SOBA: exact without compression, and what error feedback brings."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.functional import hessian, jacobian
from torch.nn.functional import binary_cross_entropy_with_logits

from training.bilevel.algorithms.soba import EFSoba, Soba, bits_down, bits_up
from training.bilevel.distributed.compressors import Compressor, MultiStep, RandK, TopK
from training.bilevel.problem import BilevelProblem
from training.bilevel.problems import quadratic
from training.bilevel.problems.quadratic import PROBLEM, Quadratic

WORKERS, SIZE = 8, 10
ORIGIN = torch.zeros(SIZE, dtype=torch.float64)
ALL, TENTH = RandK(SIZE), RandK(1)  # of 10 coordinates


@pytest.fixture(scope="module")
def workers() -> Quadratic:
    return quadratic.draw(WORKERS, x_size=SIZE, y_size=SIZE, heterogeneity=1.0, seed=0)


def soba(compressor: Compressor, theta: float = 1.0, problem: BilevelProblem = PROBLEM) -> Soba:
    return Soba(problem, compressor, compressor, alpha=0.02, beta=0.05, gamma=0.05, theta=theta)


def ef_soba(compressor: Compressor, theta: float = 0.5) -> EFSoba:
    return EFSoba(PROBLEM, compressor, compressor, alpha=0.02, beta=0.05, gamma=0.05, theta=theta)


def explicit(workers: Quadratic, steps: int, theta: float) -> torch.Tensor:
    """x after ``steps`` of SOBA on the mean problem, written out."""
    H, A, b, c, e = (leaf.mean(0) for leaf in workers[:5])
    x = y = z = h = ORIGIN
    for _ in range(steps):
        h = (1 - theta) * h + theta * (x - e + torch.einsum("ij,i->j", A, z))
        # the right side has the old x, y and z throughout
        x, y, z = x - 0.02 * h, y - 0.05 * (H @ y - A @ x - b), z - 0.05 * (H @ z - y + c)
    return x


def gradient(x: torch.Tensor, workers: Quadratic) -> float:
    return float(quadratic.hypergradient(workers, x).square().sum())


def final_x(algorithm: Soba | EFSoba, workers: Quadratic, steps: int) -> torch.Tensor:
    state, generator = algorithm.start(ORIGIN, ORIGIN, workers), torch.Generator().manual_seed(0)
    for _ in range(steps):
        state = algorithm.step(state, workers, generator)
    return state.x


@pytest.mark.parametrize("theta", [1.0, 0.3])
def test_without_compression_all_are_soba(theta: float, workers: Quadratic) -> None:
    expected = explicit(workers, 30, theta)
    torch.testing.assert_close(final_x(soba(ALL, theta), workers, 30), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(final_x(ef_soba(ALL, theta), workers, 30), expected, rtol=0, atol=1e-12)


def test_trees_are_their_vectors(workers: Quadratic) -> None:
    def joined(y: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([y["a"], y["b"].reshape(-1)])

    problem = BilevelProblem(
        lambda x, y, agent: quadratic.upper(x, joined(y), agent),
        lambda x, y, agent: quadratic.lower(x, joined(y), agent),
    )
    algorithm, generator = soba(TENTH, problem=problem), torch.Generator().manual_seed(0)
    state = algorithm.start(ORIGIN, {"a": ORIGIN[:4], "b": ORIGIN[4:].view(2, 3)}, workers)
    for _ in range(30):
        state = algorithm.step(state, workers, generator)
    assert state.y["b"].shape == (2, 3)
    torch.testing.assert_close(state.x, final_x(soba(TENTH), workers, 30), rtol=0, atol=1e-12)


@pytest.mark.parametrize("theta", [1.0, 0.2], ids=["C", "CM"])
def test_compression_alone_leaves_a_floor(theta: float, workers: Quadratic) -> None:
    assert gradient(final_x(soba(TENTH, theta), workers, 400), workers) > 1e-2


@pytest.mark.parametrize(("steps", "most"), [(200, 1e-2), pytest.param(1600, 1e-24, marks=pytest.mark.slow(8))])
def test_error_feedback_has_no_floor(steps: int, most: float, workers: Quadratic) -> None:
    assert gradient(final_x(ef_soba(TENTH), workers, steps), workers) <= most


def test_error_feedback_takes_a_biased_compressor(workers: Quadratic) -> None:
    assert gradient(final_x(ef_soba(TopK(1)), workers, 400), workers) <= 1e-5


def test_z_is_clipped(workers: Quadratic) -> None:
    algorithm = Soba(PROBLEM, ALL, ALL, alpha=0.02, beta=0.05, gamma=0.05, radius=0.01)
    state = algorithm.step(algorithm.start(ORIGIN, ORIGIN, workers), workers, torch.Generator())
    assert float(state.z.norm()) == pytest.approx(0.01)


def test_bits_are_three_messages() -> None:
    assert bits_up(soba(TENTH), ORIGIN, ORIGIN) == 3 * (32 + 4)
    assert bits_down(ORIGIN, ORIGIN) == 3 * 10 * 32


def test_on_one_node_it_is_soba_by_plain_autograd() -> None:
    """Ridge penalties of a logistic regression; the other implementation builds Hessians, and knows no torch.func."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 30, 5, generator=generator, dtype=torch.float64)
    labels = (features[:, :, 0] + 0.3 * torch.randn(2, 30, generator=generator) > 0).double()

    def lower(x: torch.Tensor, y: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        fit = binary_cross_entropy_with_logits(features[0] @ y, labels[0])
        return batch * (fit + (x.exp() * y.square()).sum())

    def upper(x: torch.Tensor, y: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return batch * binary_cross_entropy_with_logits(features[1] @ y, labels[1])

    x, y = torch.full((5,), -1.0, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    batch = torch.ones((), dtype=torch.float64)
    algorithm = Soba(BilevelProblem(upper, lower), RandK(5), RandK(5), alpha=0.5, beta=0.3, gamma=0.3)
    state = algorithm.start(x, y, batch[None])
    z = torch.zeros_like(y)
    for _ in range(50):
        state = algorithm.step(state, batch[None], torch.Generator())
        (_, cross), (_, hessian_yy) = hessian(lambda x, y: lower(x, y, batch), (x, y))
        slope_x, slope_y = jacobian(lambda x, y: upper(x, y, batch), (x, y))
        v = jacobian(lambda y, x=x: lower(x, y, batch), y)
        x, y, z = x - 0.5 * (slope_x - cross @ z), y - 0.3 * v, z - 0.3 * (hessian_yy @ z - slope_y)
    assert float((x + 1).norm()) > 0.01  # it has gone somewhere
    for ours, theirs in ((state.x, x), (state.y, y), (state.z, z)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.slow(6)
def test_multi_step_compression_lowers_the_floor(workers: Quadratic) -> None:
    plain = gradient(final_x(soba(TENTH), workers, 400), workers)
    assert gradient(final_x(soba(MultiStep(TENTH, 10)), workers, 400), workers) < plain / 5


def test_a_biased_compressor_is_one_line() -> None:
    algorithm = Soba(PROBLEM, ALL, TopK(2), alpha=0.1, beta=0.1, gamma=0.1)
    with pytest.raises(
        ValueError, match=r"^lower: TopK\(k=2\) is biased; take an unbiased one such as RandK, or EF-SOBA"
    ):
        algorithm.start(ORIGIN, ORIGIN, None)


def test_a_batch_of_other_workers_is_one_line(workers: Quadratic) -> None:
    algorithm, four_workers = ef_soba(TENTH), Quadratic(*(leaf[:4] for leaf in workers))
    with pytest.raises(ValueError, match=r"^batch: has 8 rows; its leading axis must be 4 workers$"):
        algorithm.step(algorithm.start(ORIGIN, ORIGIN, four_workers), workers, torch.Generator())
