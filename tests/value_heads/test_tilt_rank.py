"""Tilts of fewer ranks: the best map of states and lengths that has them, and its error in logits."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.value_heads.test_tilt import head, random_tilt
from value_heads.length_features import NUM_LENGTH_FEATURES
from value_heads.tilt import Tilt, fold_tilts
from value_heads.tilt_rank import recompressed


def centred_map(tilt: Tilt, head_VD: torch.Tensor) -> torch.Tensor:
    """[V, D + 1 + L]: what a state, the constant and each length feature add to the logits, less each one's mean."""
    lengths = tilt.bias.new_zeros(len(tilt.state_factor), NUM_LENGTH_FEATURES)
    lengths = lengths if tilt.length_factor is None else tilt.length_factor
    additions = head_VD @ tilt.token_factor.T @ torch.cat([tilt.state_factor, lengths], 1)
    return additions - additions.mean(0)


def expected_additions(additions: torch.Tensor, width: int, state_length: float) -> torch.Tensor:
    """The columns of states and lengths, whose squares sum to V times the mean square in logits."""
    return torch.cat([additions[:, :width] * (state_length / width**0.5), additions[:, width + 1 :]], 1)


@given(
    vocabulary=st.integers(2, 40),
    width=st.integers(1, 12),
    ranks=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    rank=st.integers(1, 6),
    state_length=st.floats(0.5, 20),
    seed=st.integers(0, 99),
)
def test_the_error_is_of_the_singular_values_that_are_left_out(
    vocabulary: int, width: int, ranks: list[int], rank: int, state_length: float, seed: int
) -> None:
    """Of the product with the head, states and lengths; none of that rank is nearer (Eckart-Young)."""
    head_VD = head(vocabulary, width)
    tilts = [random_tilt(seed + number, each, vocabulary, width) for number, each in enumerate(ranks)]
    folded = fold_tilts(tilts, [1.0] * len(tilts))
    smaller, error = recompressed(folded, head_VD, rank, state_length)
    if sum(ranks) <= rank:
        assert smaller is folded and error == 0.0
        return
    assert len(smaller.state_factor) == len(smaller.token_factor) <= rank
    exact = expected_additions(centred_map(folded, head_VD), width, state_length)
    left_out = torch.linalg.svdvals(exact)[rank:].norm() / vocabulary**0.5
    difference = exact - expected_additions(centred_map(smaller, head_VD), width, state_length)
    atol = 1e-4 * float(exact.norm())
    torch.testing.assert_close(torch.tensor(error), left_out, atol=atol, rtol=1e-3)
    torch.testing.assert_close(difference.norm() / vocabulary**0.5, left_out, atol=atol, rtol=1e-3)


@given(st.integers(0, 99), st.integers(1, 3))
def test_tilts_that_share_their_ranks_stay_as_they_were(seed: int, rank: int) -> None:
    """Their constants too."""
    folded = fold_tilts([random_tilt(seed, rank)] * 3, [1.0, 0.5, -0.2])
    smaller, error = recompressed(folded, head(), rank, 5.0)
    assert len(smaller.state_factor) == rank and error < 1e-4
    torch.testing.assert_close(centred_map(smaller, head()), centred_map(folded, head()), atol=1e-3, rtol=1e-3)
    assert smaller.bias is folded.bias and smaller.gates is folded.gates and smaller.parts == folded.parts


@given(st.integers(0, 99), st.integers(1, 5))
def test_what_adds_nothing_at_the_mean_state_does_so_still(seed: int, rank: int) -> None:
    mean_D = torch.randn(6, generator=torch.Generator().manual_seed(seed))
    tilt = random_tilt(seed, 6)
    constant = -(tilt.state_factor[:, :-1] @ mean_D)
    tilt = replace(tilt, state_factor=torch.cat([tilt.state_factor[:, :-1], constant[:, None]], 1))
    smaller, _ = recompressed(tilt, head(), rank, 5.0)
    assert (smaller.state_factor @ torch.cat([mean_D, torch.ones(1)])).abs().max() < 1e-4
