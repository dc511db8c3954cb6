"""Sum V_t/beta_t: folding is exact, and scoring a search row by row equals reading whole responses."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from value_heads import FeatureSpec, LinearHead, MLPHead, ValueStack, features
from value_heads.features import HEAD_STATE, TOKENS
from value_heads.heads import with_ended
from value_heads.text_counts import pack

SIZE = 12
TEXT = pack(["a", "Ġbc", ".", "Ċ", "ĠD", "e", ",", None, "Ġ12", "f"])
SPECS = (
    FeatureSpec(current=(2,), summed=(0, 2), horizon=8),
    FeatureSpec(current=(2, 3), averaged=(3,), position=False, horizon=32),
    FeatureSpec(summed=(2,), decayed=((3, 0.9),), horizon=20),
    FeatureSpec(current=(3,), counted=(1, 5), stop_ids=(7,), position=False, horizon=16),
    FeatureSpec(current=(3,), summed=(2,), counted=(1, 6), stop_ids=(7,), ended=True, horizon=24),
    FeatureSpec(averaged=(2,), text_counts=TEXT, stop_ids=(7,), position=False, horizon=8),
    FeatureSpec(current=(3,), summed=(2,), text_counts=TEXT, stop_ids=(7,), ended=True, horizon=24),
)


HEAD_SPECS = (
    FeatureSpec(current=(HEAD_STATE, 2), averaged=(HEAD_STATE,), position=False, horizon=8),
    FeatureSpec(summed=(0, HEAD_STATE), counted=(1, 5), stop_ids=(7,), ended=True, horizon=16),
    FeatureSpec(decayed=((HEAD_STATE, 0.9), (3, 0.8)), stop_ids=(7,), horizon=20),
)


def linear(spec: FeatureSpec, generator: torch.Generator) -> LinearHead:
    return LinearHead(
        spec, torch.randn(spec.width(SIZE), generator=generator), float(torch.randn(1, generator=generator))
    )


def mlp(spec: FeatureSpec) -> MLPHead:
    torch.manual_seed(3)
    width = spec.width(SIZE)
    return MLPHead(spec, torch.randn(width), torch.rand(width) + 0.5, (8,))


def random_hidden(rows: int, length: int, generator: torch.Generator) -> dict[int, torch.Tensor]:
    hidden = {layer: torch.randn(rows, length, SIZE, generator=generator) for layer in (0, 2, 3)}
    return hidden | {TOKENS: torch.randint(10, (rows, length), generator=generator)}


def plain_sum(heads, betas, hidden):
    return sum(head(features(head.spec, hidden)) / beta for head, beta in zip(heads, betas, strict=True))


@settings(max_examples=30, deadline=None)
@given(
    chosen=st.lists(st.sampled_from(SPECS), min_size=1, max_size=8),
    betas=st.lists(st.floats(0.1, 10), min_size=8, max_size=8),
    seed=st.integers(0, 1000),
)
def test_folded_equals_the_sum(chosen, betas, seed):
    generator = torch.Generator().manual_seed(seed)
    heads = [linear(spec, generator) for spec in chosen]
    betas = betas[: len(heads)]
    stack = ValueStack(heads, betas)
    hidden = random_hidden(3, 6, generator)
    expected = plain_sum(heads, betas, hidden)
    torch.testing.assert_close(stack.values(hidden), expected, atol=1e-4, rtol=1e-4)
    assert len(stack.terms()) == 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), position=st.booleans(), text=st.sampled_from(["", TEXT]))
def test_a_finished_response_has_the_value_function_for_finished_ones(seed, position, text):
    spec = FeatureSpec(current=(2,), averaged=(3,), counted=(1, 5), stop_ids=(4, 7), position=position, horizon=16)
    spec = spec.model_copy(update={"text_counts": text})
    generator = torch.Generator().manual_seed(seed)
    head, ended = linear(spec, generator), linear(spec, generator)
    combined, hidden = with_ended(head, ended), random_hidden(5, 6, generator)
    of_unfinished, of_finished = (part(features(spec, hidden)) for part in (head, ended))
    finished = torch.isin(hidden[TOKENS], torch.tensor(spec.stop_ids))
    values = combined(features(combined.spec, hidden))
    torch.testing.assert_close(values, torch.where(finished, of_finished, of_unfinished), atol=1e-4, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    chosen=st.lists(st.sampled_from((*HEAD_SPECS, SPECS[3])), min_size=1, max_size=4),
    betas=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    mlps=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_numbers_of_the_head_state_are_enough(chosen, betas, mlps, seed):
    generator = torch.Generator().manual_seed(seed)
    heads = [linear(spec, generator) for spec in (HEAD_SPECS[0], *chosen)] + ([mlp(SPECS[0])] if mlps else [])
    stack = ValueStack(heads, [1.0, *betas, 2.0][: len(heads)])
    projected, rows = stack.projected()
    states = torch.randn(3, 6, SIZE, generator=generator)
    hidden = random_hidden(3, 6, generator) | {HEAD_STATE: states}
    numbers = torch.nn.functional.pad(states @ rows.T, (0, SIZE - len(rows)))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    values = projected.values(hidden | {HEAD_STATE: numbers})
    torch.testing.assert_close(values, stack.values(hidden), atol=1e-4, rtol=1e-4)


def test_one_heads_rows_depend_on_no_beta_and_an_mlp_has_none():
    generator = torch.Generator().manual_seed(0)
    stack = ValueStack([linear(HEAD_SPECS[0], generator)], [1.0])
    assert torch.equal(stack.projected()[1], stack.with_betas([0.3]).projected()[1])
    for heads, message in (([mlp(HEAD_SPECS[0])], "whole state"), ([linear(SPECS[0], generator)], "no value function")):
        with pytest.raises(ValueError, match=message):
            ValueStack(heads, [1.0]).projected()


def test_a_value_function_for_finished_responses_takes_stop_ids():
    generator = torch.Generator().manual_seed(0)
    plain, other = linear(SPECS[0], generator), linear(SPECS[3], generator)
    for head, ended in ((plain, plain), (other, plain), (with_ended(other, other), with_ended(other, other))):
        with pytest.raises(ValueError, match="finished responses"):
            with_ended(head, ended)
    with pytest.raises(ValueError, match="stop_ids"):
        FeatureSpec(current=(2,), ended=True)


class CountProducts(torch.overrides.TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function in (
            torch.Tensor.matmul,
            torch.Tensor.__matmul__,
            torch.matmul,
            torch.nn.functional.linear,
        )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("iterations", [1, 8])
async def test_eight_linear_heads_cost_one_product(iterations):
    generator = torch.Generator().manual_seed(0)
    stack = ValueStack([linear(SPECS[0], generator) for _ in range(iterations)], [1.0] * iterations)
    state = stack.start([1, 2])
    chunk = SimpleNamespace(
        tokens_RL=torch.zeros(2, 5, dtype=torch.long),
        lengths_R=torch.tensor([5, 5]),
        hidden=random_hidden(2, 5, generator),
    )
    with CountProducts() as products:
        await state.score([0], 2, chunk)
    assert products.count == 1


@pytest.mark.parametrize("kind", ["linear", "mlp", "counts", "both"])
async def test_scores_of_a_search_equal_full_recomputation(kind):
    generator = torch.Generator().manual_seed(5)
    heads = {"linear": [linear(s, generator) for s in SPECS], "mlp": [mlp(SPECS[0]), mlp(SPECS[3])]}
    heads["counts"] = [mlp(SPECS[3]), mlp(SPECS[4])]  # which count different tokens
    heads["both"] = [*heads["linear"], mlp(SPECS[1]), mlp(SPECS[4])]
    betas = [0.5 + 0.5 * t for t in range(len(heads[kind]))]
    stack = ValueStack(heads[kind], betas)
    state = stack.start([7])
    history = {layer: torch.zeros(1, 0, SIZE) for layer in (0, 2, 3)}
    history[TOKENS] = torch.zeros(1, 0, dtype=torch.long)
    for parents, lengths in [([0], [3, 3, 2, 3]), ([3, 0, 0], [4, 1, 4, 4, 4, 4, 3, 4, 4, 4, 4, 2]), ([2, 8], [2] * 8)]:
        hidden = random_hidden(len(lengths), max(lengths), generator)
        chunk = SimpleNamespace(
            tokens_RL=hidden[TOKENS],
            lengths_R=torch.tensor(lengths),
            hidden={layer: hidden[layer] for layer in (0, 2, 3)},
        )
        got = await state.score(parents, 4, chunk)
        rows = [parent for parent in parents for _ in range(4)]
        history = {layer: torch.cat([history[layer][rows], hidden[layer]], 1) for layer in hidden}
        last = history[0].shape[1] - max(lengths) + torch.tensor(lengths) - 1
        expected = plain_sum(heads[kind], betas, history)[torch.arange(len(rows)), last]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_betas_can_be_changed_and_are_checked():
    generator = torch.Generator().manual_seed(0)
    heads = [linear(SPECS[0], generator) for _ in range(2)]
    hidden = random_hidden(2, 3, generator)
    halved = ValueStack(heads, [1, 1]).with_betas([2, 2])
    torch.testing.assert_close(2 * halved.values(hidden), ValueStack(heads, [1, 1]).values(hidden))
    for betas in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="beta"):
            ValueStack(heads, betas)


@given(
    chosen=st.lists(st.sampled_from(SPECS), min_size=1, max_size=3), length=st.integers(1, 7), seed=st.integers(0, 99)
)
def test_what_tokens_add_sums_to_the_value_of_every_prefix(chosen, length, seed):
    generator = torch.Generator().manual_seed(seed)
    stack = ValueStack([linear(spec, generator) for spec in chosen], [2.0] * len(chosen))
    hidden = random_hidden(1, length, generator)
    added_T = shares_by_chunks(stack, hidden, [length])[0]
    assert torch.allclose(added_T.cumsum(0), stack.values(hidden)[0], atol=1e-4)


@given(
    chosen=st.lists(st.sampled_from(SPECS), min_size=1, max_size=3),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_shares_do_not_depend_on_how_chunks_divide_the_tokens(chosen, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    stack = ValueStack([linear(spec, generator) for spec in chosen], [0.5] * len(chosen))
    hidden = random_hidden(3, sum(lengths), generator)
    torch.testing.assert_close(
        shares_by_chunks(stack, hidden, lengths), shares_by_chunks(stack, hidden, [sum(lengths)]), atol=1e-4, rtol=1e-4
    )


def shares_by_chunks(stack, hidden, lengths):
    """[R, T]; the rows are continued in reverse order, and put back."""
    shares, rows, start = stack.start_tokens(), len(hidden[TOKENS]), 0
    parts, order = [], torch.arange(rows)
    for number, length in enumerate(lengths):
        parents = [0] if number == 0 else list(range(rows))[::-1]
        order = order if number == 0 else order.flip(0)
        part = {layer: states[order, start : start + length] for layer, states in hidden.items()}
        chunk = SimpleNamespace(
            tokens_RL=part.pop(TOKENS), lengths_R=torch.full((rows,), length), hidden={k: part[k] for k in stack.layers}
        )
        added_RL = shares.shares(parents, rows if number == 0 else 1, chunk)
        parts.append(added_RL[order.argsort()])
        start += length
    return torch.cat(parts, 1)


def test_an_mlp_is_no_sum_over_tokens():
    generator = torch.Generator().manual_seed(0)
    assert ValueStack([linear(SPECS[0], generator)], [1.0]).decomposes
    head = MLPHead(SPECS[0], torch.zeros(SPECS[0].width(4)), torch.ones(SPECS[0].width(4)))
    assert not ValueStack([head], [1.0]).decomposes
