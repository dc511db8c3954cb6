"""Compressors: unbiased where they say so, their variance within its bound, their bits."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from training.bilevel.distributed.compressors import (
    QSGD,
    Compressor,
    Identity,
    MultiStep,
    Natural,
    RandK,
    TopK,
    draw_seeds,
    index_bits,
    uniform,
)
from training.bilevel.distributed.packing import pack, packed_bytes, unpack

D, DRAWS = 40, 40_000
UNBIASED: list[Compressor] = [RandK(4), QSGD(4), QSGD(1), Natural(), MultiStep(RandK(4), 3), MultiStep(QSGD(1), 2)]
ALL = [*UNBIASED, Identity(), RandK(4, shared_seed=True), TopK(4), MultiStep(TopK(2), 3)]


@pytest.fixture(scope="module")
def vector() -> torch.Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draws(compressor: Compressor, vector: torch.Tensor) -> torch.Tensor:
    return compressor(vector.expand(DRAWS, D), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("compressor", UNBIASED, ids=repr)
def test_the_mean_is_the_vector(compressor: Compressor, vector: torch.Tensor) -> None:
    rows = draws(compressor, vector)
    standard_error = rows.std(0) / DRAWS**0.5
    assert compressor.unbiased
    assert ((rows.mean(0) - vector).abs() <= 5 * standard_error + 1e-12).all()


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
    sent = RandK(4)(vector.expand(10, D), torch.Generator().manual_seed(1))
    assert ((sent != 0).sum(1) == 4).all()
    torch.testing.assert_close(sent[sent != 0], (10 * vector).expand(10, D)[sent != 0])


def test_natural_sends_neighbouring_powers_of_two() -> None:
    v = torch.tensor([[3.0, -0.3, 4.0, 0.0, -1.0]], dtype=torch.float64).expand(1000, 5)
    rounded = Natural()(v, torch.Generator().manual_seed(0))
    values = [set(column.tolist()) for column in rounded.T]
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
    assert [index_bits(d) for d in (1, 2, 8, 9)] == [0, 1, 3, 4]


def test_k_beyond_the_message_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^k: must be between 1 and the 40 coordinates of a message, not 41$"):
        RandK(41)(torch.zeros(2, D), torch.Generator())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_what_arrives_is_what_the_stacked_engine_has(
    compressor: Compressor, dtype: torch.dtype, vector: torch.Tensor
) -> None:
    v = torch.stack([vector, 1e-30 * vector.flip(0), torch.zeros(D)]).to(dtype)
    layout = compressor.layout(D, 8 * v.element_size())
    generator = torch.Generator().manual_seed(2)
    seeds = draw_seeds(3, generator)
    sent = pack(compressor.encode(v, seeds), layout)
    assert sent.nbytes == 3 * packed_bytes(layout)
    arrived = compressor.decode(unpack(sent, layout, dtype), D, dtype, seeds)
    assert arrived.dtype == dtype
    assert torch.equal(arrived, compressor(v, generator.manual_seed(2)))


@pytest.mark.parametrize("compressor", ALL, ids=repr)
def test_the_bytes_are_the_bits_and_less_than_one_more_a_field(compressor: Compressor) -> None:
    layout = compressor.layout(D)
    assert 0 <= 8 * packed_bytes(layout) - compressor.bits(D) < 8 * len(layout)


def test_several_rounds_send_what_is_left(vector: torch.Tensor) -> None:
    rows, generator = vector.expand(1, D), torch.Generator()
    assert torch.equal(MultiStep(TopK(2), 3)(rows, generator), TopK(6)(rows, generator))
    once, plain = MultiStep(RandK(4), 1), RandK(4)
    torch.testing.assert_close(once(rows, generator.manual_seed(3)), plain(rows, generator.manual_seed(3)))
    assert MultiStep(RandK(4), 8).omega(D) < plain.omega(D) / 8 < once.omega(D)
    assert MultiStep(RandK(4), 8).bits(D) == 8 * plain.bits(D)


def test_draws_are_uniform_and_each_row_has_its_own() -> None:
    seeds = torch.arange(1000)  # neighbours, of all seeds
    draws = uniform(seeds, 20)
    assert stats.kstest(draws.flatten(), "uniform").pvalue > 0.01
    correlation = torch.corrcoef(draws.T) - torch.eye(20)
    assert correlation.abs().max() < 5 / 1000**0.5
    assert torch.equal(uniform(seeds[7:8], 20), draws[7:8])


def test_natural_compression_reaches_the_ends_of_its_floats() -> None:
    info = torch.finfo(torch.float32)
    v = torch.tensor([[info.max, -info.max, info.tiny / 4]]).expand(1000, 3)
    rounded = Natural()(v, torch.Generator().manual_seed(0))
    assert rounded[:, :2].abs().unique().tolist() == [2.0**127]
    assert set(rounded[:, 2].tolist()) == {0.0, info.tiny}


def test_no_round_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^rounds: must be at least 1, not 0$"):
        MultiStep(RandK(4), 0)


def test_no_level_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^levels: must be at least 1, not 0$"):
        QSGD(0)
