"""Compressors: unbiased where they say so, their variance within its bound, their bits."""

from __future__ import annotations

import pytest
import torch

from training.bilevel.compressors import QSGD, Compressor, Natural, RandK, TopK

D, DRAWS = 40, 40_000
UNBIASED: list[Compressor] = [RandK(4), QSGD(4), QSGD(1), Natural()]


@pytest.fixture(scope="module")
def vector() -> torch.Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draws(compressor: Compressor, vector: torch.Tensor) -> torch.Tensor:
    return compressor(vector.expand(DRAWS, D), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("compressor", UNBIASED, ids=repr)
def test_the_mean_is_the_vector(compressor: Compressor, vector: torch.Tensor) -> None:
    found = draws(compressor, vector)
    standard_error = found.std(0) / DRAWS**0.5
    assert compressor.unbiased
    assert ((found.mean(0) - vector).abs() <= 5 * standard_error + 1e-12).all()


@pytest.mark.parametrize("compressor", UNBIASED, ids=repr)
def test_the_variance_is_within_its_bound(compressor: Compressor, vector: torch.Tensor) -> None:
    omega = float((draws(compressor, vector) - vector).square().sum(1).mean() / vector.square().sum())
    assert 0 < omega <= 1.02 * compressor.omega(D)
    if isinstance(compressor, RandK):  # there the bound is an equality
        assert omega == pytest.approx(9, rel=0.02)


def test_each_row_draws_for_itself(vector: torch.Tensor) -> None:
    for compressor in UNBIASED:
        first, second = compressor(vector.expand(2, D), torch.Generator().manual_seed(1))
        assert not torch.equal(first, second)


def test_rand_k_sends_k_scaled_coordinates(vector: torch.Tensor) -> None:
    found = RandK(4)(vector.expand(10, D), torch.Generator().manual_seed(1))
    assert ((found != 0).sum(1) == 4).all()
    torch.testing.assert_close(found[found != 0], (10 * vector).expand(10, D)[found != 0])


def test_natural_sends_neighbouring_powers_of_two() -> None:
    v = torch.tensor([[3.0, -0.3, 4.0, 0.0, -1.0]], dtype=torch.float64).expand(1000, 5)
    found = Natural()(v, torch.Generator().manual_seed(0))
    values = [set(column.tolist()) for column in found.T]
    assert values == [{2.0, 4.0}, {-0.25, -0.5}, {4.0}, {0.0}, {-1.0}]


def test_zero_stays_zero() -> None:
    zero = torch.zeros(3, D)
    for compressor in [*UNBIASED, TopK(4)]:
        assert not compressor(zero, torch.Generator()).any()


def test_top_k_is_biased_and_keeps_the_largest() -> None:
    v = torch.tensor([[1.0, -5.0, 2.0, 3.0]])
    assert TopK(2)(v, torch.Generator()).tolist() == [[0.0, -5.0, 0.0, 3.0]]
    assert not TopK(2).unbiased


def test_bits_are_values_and_what_names_them() -> None:
    assert RandK(4).bits(40) == TopK(4).bits(40) == 4 * (32 + 6)
    assert RandK(4, shared_seed=True).bits(40) == 4 * 32
    assert QSGD(3).bits(40) == 32 + 40 * 3
    assert Natural().bits(40) == 360


def test_k_beyond_the_message_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^k: must be between 1 and the 40 coordinates of a message, not 41$"):
        RandK(41)(torch.zeros(2, D), torch.Generator())
