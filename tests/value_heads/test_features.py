"""Feature vectors: their definition, and that reading them chunk by chunk changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from value_heads import FeatureSpec, LinearHead, ValueStack, features
from value_heads.features import KNOTS, TOKENS, assemble, last_states
from value_heads.text_counts import pack

SPEC = FeatureSpec(current=(1, 3), summed=(0, 1), averaged=(1,), decayed=((3, 0.8),), horizon=16)
STOPS = SPEC.model_copy(update={"stop_ids": (4, 7)})
TEXTS = SPEC.model_copy(update={"text_counts": pack(["a", "Ġbc", ".", "Ċ", None, "ĠD", "e", None, ",", "Ġ12"])})
ROWS, SIZE = 3, 5


def advance(spec, carried, hidden, lengths, start):
    """Features at each row's last token and the sums through it, as a search reads them."""
    states, sums, t = last_states(spec, carried, hidden, lengths, start)
    return assemble(spec, states, sums, t), sums


def random_hidden(length: int, seed: int, rows: int = ROWS) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(rows, length, SIZE, generator=generator) for layer in SPEC.layers}


def test_every_block_is_what_the_spec_says():
    hidden = random_hidden(7, seed=0)
    row, t = 2, 5
    expected = [
        hidden[1][row, t - 1],
        hidden[3][row, t - 1],
        sum(hidden[0][row, i] for i in range(t)) / 4,
        sum(hidden[1][row, i] for i in range(t)) / 4,
        sum(hidden[1][row, i] for i in range(t)) / t,
        sum(0.8 ** (t - 1 - i) * hidden[3][row, i] for i in range(t)) / 4,
        torch.tensor([t / 16]),
    ]
    got = features(SPEC, hidden)
    assert got.shape == (ROWS, 7, SPEC.width(SIZE))
    torch.testing.assert_close(got[row, t - 1], torch.cat(expected))


def test_length_and_finished_features_are_piecewise_linear_in_the_token_number():
    spec = FeatureSpec(current=(1,), position=False, stop_ids=(4, 7))
    hidden = random_hidden(20, seed=0) | {TOKENS: torch.tensor([[9] * 10 + [7] + [9] * 9, [9] * 20, [4] * 20])}
    length, finished = features(spec, hidden)[..., SIZE:].split([len(KNOTS) - 1, len(KNOTS)], -1)
    weight = torch.tensor(KNOTS).float().diff()  # with these a sum of ramps is t - 1
    torch.testing.assert_close(length @ weight, torch.arange(20.0).expand(ROWS, 20))
    torch.testing.assert_close(finished[2], torch.cat([torch.ones(20, 1), length[2]], -1))
    assert finished[1].count_nonzero() == 0
    assert finished[0].any(-1).nonzero().tolist() == [[10]]
    assert length[0, -1].tolist() == [1.0] * KNOTS.index(20) + [0.0] * (len(KNOTS) - 1 - KNOTS.index(20))


def test_functions_of_the_length_are_constant_past_what_a_fit_has_seen():
    spec = FeatureSpec(current=(1,), position=False, stop_ids=(7,))
    hidden = {1: torch.zeros(1, 70, 1), TOKENS: torch.full((1, 70), 9)}
    weight = torch.randn(spec.width(1), generator=torch.Generator().manual_seed(0))
    fitted = features(spec, hidden)[0, :24].any(0)
    values = features(spec, hidden)[0] @ torch.where(fitted, weight, 0.0)  # a constant feature gets the weight 0
    torch.testing.assert_close(values[24:], values[23].expand(46))


@pytest.mark.parametrize("spec", [SPEC, STOPS, TEXTS])
@settings(max_examples=30, deadline=None)
@given(chunks=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_chunk_by_chunk_equals_whole_response(spec, chunks, seed):
    hidden = random_hidden(sum(chunks), seed)
    hidden[TOKENS] = torch.randint(10, (ROWS, sum(chunks)), generator=torch.Generator().manual_seed(seed))
    all_at_once = features(spec, hidden)
    carried, start = None, 0
    for length in chunks:
        piece = {layer: state[:, start : start + length] for layer, state in hidden.items()}
        within = features(spec, piece, carried, start)
        torch.testing.assert_close(within, all_at_once[:, start : start + length], atol=1e-4, rtol=1e-4)
        last, carried = advance(spec, carried, piece, torch.full((ROWS,), length), start)
        start += length
        torch.testing.assert_close(last, all_at_once[:, start - 1], atol=1e-4, rtol=1e-4)


def test_padding_never_enters():
    hidden = random_hidden(6, seed=1)
    lengths = torch.tensor([2, 6, 3])
    all_at_once = features(SPEC, hidden)
    poisoned = {layer: state.clone() for layer, state in hidden.items()}
    for state in poisoned.values():
        state[0, 2:], state[2, 3:] = float("nan"), float("inf")
    last, carried = advance(SPEC, None, poisoned, lengths, 0)
    torch.testing.assert_close(last, all_at_once[torch.arange(3), lengths - 1])
    assert all(total.isfinite().all() for total in carried.values())


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"current": (1, 1)},
        {"summed": (-1,)},
        {"current": (1,), "horizon": 0},
        {"current": (1,), "stop_ids": (7, 2)},
        {"stop_ids": (7,)},
    ],
)
def test_a_senseless_spec_is_refused(bad):
    with pytest.raises(ValueError):
        FeatureSpec(**bad)


def test_counted_tokens_are_counted_and_fold_across_vocabularies():
    """Two heads that count different tokens equal the folded one; ids not listed, and padding, count nowhere."""
    generator = torch.Generator().manual_seed(3)
    hidden = random_hidden(6, seed=4) | {TOKENS: torch.tensor([[5, 9, 5, 2, 7, 5], [9, 9, 2, 1, 1, -1], [3] * 6])}
    specs = [
        FeatureSpec(current=(1,), counted=(2, 5, 9), horizon=16),
        FeatureSpec(summed=(0,), counted=(1, 5), horizon=4),
    ]
    counts = features(specs[0], hidden)[0, :, SIZE : SIZE + 3] * 4
    torch.testing.assert_close(counts[-1], torch.tensor([1.0, 3.0, 1.0]))
    heads = [LinearHead(s, torch.randn(s.width(SIZE), generator=generator), 0.3) for s in specs]
    stack = ValueStack(heads, [1.0, 2.0])
    apart = sum(h(features(h.spec, hidden)) / b for h, b in zip(heads, (1.0, 2.0), strict=True))
    torch.testing.assert_close(stack.values(hidden), apart)
    assert stack.folded is not None and stack.folded.spec.counted == (1, 2, 5, 9)


def test_heads_with_and_without_stop_ids_fold_and_two_models_do_not():
    generator = torch.Generator().manual_seed(3)
    hidden = random_hidden(6, seed=4) | {TOKENS: torch.tensor([[5, 9, 5, 2, 7, 5], [9, 9, 2, 1, 7, -1], [3] * 6])}
    specs = [
        FeatureSpec(current=(1,), stop_ids=(7,), position=False, horizon=16),
        FeatureSpec(current=(1,), horizon=8),
        FeatureSpec(summed=(0,), counted=(1, 5), stop_ids=(7,), horizon=4),
    ]
    heads = [LinearHead(s, torch.randn(s.width(SIZE), generator=generator), 0.3) for s in specs]
    stack = ValueStack(heads, [1.0, 2.0, 0.5])
    apart = sum(h(features(h.spec, hidden)) / b for h, b in zip(heads, (1.0, 2.0, 0.5), strict=True))
    torch.testing.assert_close(stack.values(hidden), apart)
    assert len(stack.terms()) == 1
    other_stops = FeatureSpec(current=(1,), stop_ids=(2, 7))
    with pytest.raises(ValueError, match="stop ids"):
        ValueStack([heads[0], LinearHead(other_stops, torch.zeros(other_stops.width(SIZE)), 0.0)], [1.0, 1.0])
