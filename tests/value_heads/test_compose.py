"""Weighted sums of value functions and of tilts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iro_server.engines.base import Chunk
from tests.toy import VOCABULARY as TOY_VOCABULARY
from tests.toy import next_probs
from tests.value_heads.test_stack import SIZE, SPECS, linear, mlp, random_hidden
from tests.value_heads.test_tilt import WIDTH, additions, random_tilt
from value_heads import FeatureSpec, LinearHead, ValueStack
from value_heads.compose import compose
from value_heads.features import TOKENS
from value_heads.prompt_features import TokenGroups
from value_heads.tilt import BoundTilt, Tilt, fold_tilts, zero_tilt

WEIGHTS = st.floats(-5, 5).filter(lambda weight: weight != 0)


def stack(seed: int, *, deep: bool = False, tilt: Tilt | None = None) -> ValueStack:
    generator = torch.Generator().manual_seed(seed)
    heads = [linear(SPECS[seed % len(SPECS)], generator), linear(SPECS[0], generator)]
    return ValueStack([*heads, mlp(SPECS[0])] if deep else heads, [0.5, 2.0, 1.5][: 3 if deep else 2], tilt)


@settings(max_examples=30, deadline=None)
@given(st.lists(WEIGHTS, min_size=1, max_size=4), st.booleans(), st.integers(0, 50))
def test_a_composite_is_the_weighted_sum(weights: list[float], deep: bool, seed: int) -> None:
    stacks = [stack(seed + number, deep=deep and number == 0) for number in range(len(weights))]
    hidden = random_hidden(2, 5, torch.Generator().manual_seed(seed))
    expected = sum(weight * part.values(hidden) for weight, part in zip(weights, stacks, strict=True))
    composite = compose(stacks, weights)
    torch.testing.assert_close(composite.values(hidden), expected, atol=1e-3, rtol=1e-4)
    assert len(composite.terms()) == (2 if deep else 1)  # linear heads of all models are one


async def test_a_composite_of_models_that_count_different_tokens_scores_a_search() -> None:
    generator = torch.Generator().manual_seed(0)
    counting, deep = ValueStack([linear(SPECS[3], generator)], [0.5]), ValueStack([mlp(SPECS[4])], [2.0])
    composite, hidden = compose([counting, deep], [1.0, -0.5]), random_hidden(4, 5, generator)
    chunk = Chunk(
        hidden[TOKENS], torch.zeros(4, 5), torch.full((4,), 5), torch.zeros(4, dtype=torch.bool), hidden=hidden
    )
    scores = await composite.start([7]).score([0], 4, chunk)
    torch.testing.assert_close(scores, composite.values(hidden)[:, -1], atol=1e-4, rtol=1e-4)


def test_one_model_of_weight_1_is_that_model_to_the_bit() -> None:
    only = stack(0, tilt=random_tilt(0))
    assert compose([only], [1.0]) is only


@settings(max_examples=25, deadline=None)
@given(
    st.lists(WEIGHTS, min_size=1, max_size=4), st.lists(st.sampled_from([(), (4,), (0, 4)]), min_size=4), st.booleans()
)
def test_tilts_of_jobs_with_other_prompts_fold_exactly(
    weights: list[float], ignored: list[tuple[int, ...]], wordless: bool
) -> None:
    """Each ignores its own job's common words."""
    tilts = [replace(random_tilt(number), ignored=ignored[number]) for number in range(len(weights))]
    if wordless:
        gates = tilts[0].gates.clone()
        gates[:-1] = 0
        tilts[0] = replace(tilts[0], gates=gates)
    folded = fold_tilts(tilts, weights)
    nested = fold_tilts([fold_tilts(tilts[:1], weights[:1]), *tilts[1:]], [1.0, *weights[1:]])
    halved = fold_tilts([folded], [0.5])
    states, response = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1)), [0, 6, 3, 7]
    expected = sum(w * additions(t, states, response) for w, t in zip(weights, tilts, strict=True))
    torch.testing.assert_close(additions(folded, states, response), expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(additions(nested, states, response), expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(additions(halved, states, response), expected / 2, atol=1e-3, rtol=1e-4)
    assert len(folded.word_sets) < len({tilt.ignored for tilt in tilts})
    assert ("word_sets" in folded.parts) == bool(folded.word_sets)


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, WEIGHTS, st.lists(st.integers(0, TOY_VOCABULARY - 1), min_size=1, max_size=4))
def test_two_tilts_draw_from_the_product_of_their_distributions(one: float, other: float, tokens: list[int]) -> None:
    """On the toy model: q ∝ π_0 (q_a/π_0)^w_a (q_b/π_0)^w_b."""
    generator = torch.Generator().manual_seed(5)
    head_VD = torch.randn(TOY_VOCABULARY, WIDTH, generator=generator)
    groups = TokenGroups([f"Ġ{word}" for word in "abcd"])
    state = torch.randn(1, WIDTH, generator=generator)
    zero = zero_tilt(TOY_VOCABULARY, WIDTH, (), (3,))
    base, parts = next_probs(tokens), []
    for seed in (0, 1):
        factors = random_tilt(seed)
        bias = torch.randn(TOY_VOCABULARY, generator=generator)
        fields = {name: getattr(factors, name) for name in ("state_factor", "token_factor", "gates")}
        parts.append(replace(zero, bias=bias, **fields))

    def drawn_by(tilt: Tilt) -> torch.Tensor:
        bound = BoundTilt(tilt, head_VD, groups)
        return torch.softmax(base.log().double() + bound.additions(state, [bound.start(tokens)])[0].double(), -1)

    ratios = [drawn_by(part) / base for part in parts]
    product = base.double() * ratios[0] ** one * ratios[1] ** other
    heads = [LinearHead(FeatureSpec(summed=(0,), position=False), torch.zeros(SIZE), 0.0)]
    composite = compose([ValueStack(heads, [1.0], part) for part in parts], [one, other])
    assert composite.tilt is not None
    torch.testing.assert_close(drawn_by(composite.tilt), product / product.sum(), atol=1e-4, rtol=1e-3)


def test_negative_weights_never_flatten_the_frozen_model() -> None:
    heads = [LinearHead(FeatureSpec(summed=(0,), position=False), torch.zeros(SIZE), 0.0)]
    sharp, sharper = (ValueStack(heads, [1.0], replace(random_tilt(0), sharpness=s)) for s in (0.5, 1.0))
    for weights, expected in (((1.0, 0.5), 1.0), ((1.0, -0.25), 0.25), ((1.0, -2.0), 0.0)):
        tilt = compose([sharp, sharper], weights).tilt
        assert tilt is not None and tilt.sharpness == expected


def test_what_does_not_fold_says_why() -> None:
    with pytest.raises(ValueError, match="stop at different tokens"):
        fold_tilts([random_tilt(0), replace(random_tilt(1), stop_ids=(1,))], [1.0, 1.0])
    with pytest.raises(ValueError, match="different vocabularies"):
        fold_tilts([random_tilt(0), zero_tilt(3, WIDTH, (), (7,))], [1.0, 1.0])
