"""Tilts as adapters of the output head and as entries of ``logit_bias``."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.value_heads.test_tilt import GROUPS, STOP, VOCABULARY, WIDTH, head, random_rows, random_tilt
from value_heads.tilt import EXPORTABLE_PARTS, BoundTilt, fold_tilts, zero_tilt
from value_heads.tilt_export import (
    HeadAdapter,
    bias_at_mean_state,
    compressed,
    constant_direction,
    exported_part,
    head_adapter,
    logit_bias,
    without_static,
)
from value_heads.tilt_fit import TiltFit, fit_tilt


@given(st.integers(0, 999), st.integers(0, 4))
def test_an_adapter_and_a_bias_draw_as_the_tilt_does(seed: int, rank: int) -> None:
    tilt = exported_part(random_tilt(seed, rank))
    states = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed + 1))
    base = states @ head().T
    expected = [
        BoundTilt(tilt, head(), GROUPS).additions(s[None], [BoundTilt(tilt, head(), GROUPS).start([1])]) for s in states
    ]
    tilted = (base + torch.cat(expected)).log_softmax(-1)
    adapter = head_adapter(tilt, head())
    assert torch.allclose((base + adapter.additions(states)).log_softmax(-1), tilted, atol=1e-4)
    assert adapter.lora_A.shape == (rank + 1, WIDTH) and tilt.parts <= EXPORTABLE_PARTS


def test_states_with_a_constant_part_need_no_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.cat([torch.full((200, 1), 3.0), torch.randn(200, WIDTH - 1, generator=generator)], 1)
    direction, error = constant_direction(states)
    assert torch.allclose(states @ direction, torch.ones(200), atol=5e-3) and error < 5e-3
    adapter = head_adapter(random_tilt(3), head())
    ranked = without_static(adapter, direction)
    assert len(ranked.lora_A) == len(adapter.lora_A) + 1 and not ranked.static.any()
    limit = 5e-3 * float(adapter.static.abs().max())
    assert torch.allclose(ranked.additions(states), adapter.additions(states), atol=limit)


def test_the_error_of_the_direction_is_that_of_unseen_states() -> None:
    """Of states without a constant part, whose dimensions are more than there are states to fit them."""
    states = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    assert constant_direction(states)[1] > 0.9


def centred(additions: torch.Tensor) -> torch.Tensor:
    return additions - additions.mean(-1, keepdim=True)


@given(st.lists(st.floats(0.25, 4), min_size=1, max_size=3))
@settings(max_examples=5, deadline=None)
def test_the_bias_of_a_fitted_tilt_is_what_it_adds_at_the_mean_state(strengths: list[float]) -> None:
    """Also of a sum of tilts that were fitted to the same states, which are far from 0."""
    rows = random_rows(300)
    rows = replace(rows, states_ND=rows.states_ND + 5, features_NKF=torch.zeros_like(rows.features_NKF))
    fit = TiltFit(rank=3, beta=0.2, epochs=20, factor_rate=0.02, length_rate=0.0)
    zero = zero_tilt(VOCABULARY, WIDTH, (), (STOP,))
    tilt = fold_tilts([fit_tilt(rows, head(), zero, fit, seed) for seed in range(len(strengths))], strengths)
    additions = head_adapter(tilt, head()).additions(rows.states_ND)
    assert centred(additions).std(0).max() > 0.1  # it reads the state
    bias = centred(bias_at_mean_state(tilt))
    torch.testing.assert_close(bias, centred(additions.mean(0)), atol=1e-3, rtol=1e-3)


def test_the_stop_gate_is_in_the_bias_where_it_reads_no_state() -> None:
    tilt = exported_part(random_tilt(1, 0))
    constant = replace(tilt, gates=torch.cat([torch.zeros_like(tilt.gates[:, :-1]), tilt.gates[:, -1:]], 1))
    torch.testing.assert_close(bias_at_mean_state(constant), head_adapter(constant, head()).static)
    torch.testing.assert_close(bias_at_mean_state(tilt), tilt.bias - tilt.bias.median())


def test_the_strongest_entries_are_kept() -> None:
    static = torch.tensor([0.1, -3.0, 0.0, 2.0])
    assert logit_bias(static, 2) == {1: -3.0, 3: 2.0}
    assert set(logit_bias(static, 9)) == {0, 1, 3}
    assert len(logit_bias(torch.arange(float(VOCABULARY)), 300)) == VOCABULARY - 1


@given(st.integers(0, 999), st.integers(1, 3))
def test_tilts_that_share_their_ranks_compress_without_loss(seed: int, rank: int) -> None:
    tilt = exported_part(random_tilt(seed, rank))
    folded = head_adapter(fold_tilts([tilt] * 3, [1.0, 0.5, -0.2]), head())
    small, missing = compressed(folded, rank + 1)
    states = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))
    assert len(folded.lora_A) == 3 * rank + 1 and len(small.lora_A) == rank + 1 and missing < 1e-5
    expected = folded.additions(states).log_softmax(-1)
    assert torch.allclose(small.additions(states).log_softmax(-1), expected, atol=1e-3)


def test_what_adds_the_same_to_all_tokens_takes_no_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    of_tokens = torch.randn(VOCABULARY, generator=generator)
    columns = torch.stack([torch.full((VOCABULARY,), 100.0), of_tokens - of_tokens.mean()], 1)
    adapter = HeadAdapter(torch.eye(2, WIDTH), columns, torch.zeros(VOCABULARY))
    small, missing = compressed(adapter, 1)
    states = torch.randn(5, WIDTH, generator=generator)
    expected = adapter.additions(states).log_softmax(-1)
    assert len(small.lora_A) == 1 and missing < 1e-5
    torch.testing.assert_close(small.additions(states).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


def test_what_compression_leaves_out_is_said() -> None:
    adapter = head_adapter(exported_part(random_tilt(2, 4)), head())
    states = torch.randn(4000, WIDTH, generator=torch.Generator().manual_seed(0))
    of_state = adapter.additions(states) - adapter.static
    previous = 1.0
    for rank in (1, 2, 3, 4):
        small, missing = compressed(adapter, rank)
        difference = of_state - (small.additions(states) - small.static)
        error = (difference - difference.mean(1, keepdim=True)).square().mean().sqrt()
        assert abs(float(error / (of_state - of_state.mean(1, keepdim=True)).square().mean().sqrt()) - missing) < 0.05
        assert 0.0 < missing < previous
        previous = missing
    assert compressed(adapter, 5) == (adapter, 0.0)
