from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iro_server.engines.adjusted import top_alternatives
from iro_server.engines.base import Sampling
from iro_server.engines.sample import draw, next_tokens, steered_tokens, truncate


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1000), st.integers(0, 100))
def test_draw_inverts_the_distribution_function(vocabulary: int, seed: int) -> None:
    """Each uniform falls in the interval of the cumulative distribution that its token owns."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, vocabulary, generator=generator)
    uniforms = torch.rand(2, 7, generator=generator, dtype=torch.float64)
    tokens = draw(logits, uniforms)
    upto = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    below = torch.cat([torch.zeros(2, 1, dtype=torch.float64), upto], dim=1).gather(1, tokens)
    assert (below <= uniforms + 1e-6).all()
    assert (upto.gather(1, tokens) >= uniforms - 1e-6).all()


@given(st.floats(0.05, 0.99), st.integers(1, 40), st.integers(0, 20))
def test_truncation_keeps_the_smallest_nucleus(top_p: float, top_k: int, seed: int) -> None:
    logits = torch.randn(1, 60, generator=torch.Generator().manual_seed(seed))
    kept = truncate(logits, Sampling(top_p=top_p, top_k=top_k)).isfinite()[0]
    order = logits[0].argsort(descending=True)
    probs = torch.softmax(logits[0][order[:top_k]], dim=-1)
    size = int((probs.cumsum(0) - probs < top_p).sum())
    assert set(kept.nonzero().flatten().tolist()) == set(order[:size].tolist())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1000), st.integers(1, 5), st.floats(0.05, 1), st.floats(0, 6), st.integers(0, 100))
def test_a_steered_draw_is_of_the_nucleus_of_the_steered_distribution(
    vocabulary: int, rows: int, top_p: float, strength: float, seed: int
) -> None:
    """Each uniform falls in the interval that its token owns of q's nucleus; ratios and KL are those of all of q."""
    generator = torch.Generator().manual_seed(seed)
    logits, addition = (torch.randn(rows, vocabulary, generator=generator) for _ in range(2))
    addition *= strength
    uniforms = torch.rand(rows, 7, generator=generator, dtype=torch.float64)
    tokens, logprobs, log_ratios, kl = steered_tokens(logits, addition, Sampling(top_p=top_p), uniforms)
    frozen, tilted = (torch.log_softmax(each.double(), -1) for each in (logits, logits + addition))
    ordered, order = tilted.exp().sort(descending=True)
    ordered = ordered * (ordered.cumsum(-1) - ordered < top_p)
    nucleus = torch.zeros_like(tilted).scatter(1, order, ordered)
    upto = (nucleus / nucleus.sum(-1, keepdim=True)).cumsum(-1)
    below = torch.cat([torch.zeros(rows, 1, dtype=torch.float64), upto], dim=1).gather(1, tokens)
    assert (nucleus.gather(1, tokens) > 0).all()
    assert (below <= uniforms + 1e-6).all() and (upto.gather(1, tokens) >= uniforms - 1e-6).all()
    torch.testing.assert_close(logprobs.double(), frozen.gather(1, tokens), atol=2e-5, rtol=0)
    torch.testing.assert_close(log_ratios.double(), (tilted - frozen).gather(1, tokens), atol=2e-5, rtol=0)
    torch.testing.assert_close(kl, (tilted.exp() * (tilted - frozen)).sum(-1), atol=2e-5, rtol=0)


def test_masked_tokens_are_never_drawn_even_at_the_edge_of_rounding() -> None:
    logits = torch.full((1, 512), -torch.inf)
    logits[0, [3, 300]] = 0.0
    uniforms = torch.tensor([[0.0, 0.5, 1 - 1e-16, 0.499999999]], dtype=torch.float64)
    assert set(draw(logits, uniforms)[0].tolist()) == {3, 300}


def test_likeliest_successors_are_in_order_and_not_drawn() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    tokens, logprobs = next_tokens(logits, Sampling(likeliest=True), torch.rand(3, 4, dtype=torch.float64))
    assert tokens.tolist() == logits.argsort(descending=True)[:, :4].tolist()
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, dim=-1).gather(1, tokens))


def test_log_probabilities_are_the_tempered_models() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(1))
    tokens, logprobs = next_tokens(logits, Sampling(temperature=0.5, top_k=3), torch.rand(1, 4, dtype=torch.float64))
    torch.testing.assert_close(logprobs, torch.log_softmax(logits / 0.5, dim=-1).gather(1, tokens))


def test_steered_rows_are_drawn_alike_together_and_alone() -> None:
    """The tilted distribution's tokens, and what its draws say."""
    rows, generator = 5, torch.Generator().manual_seed(3)
    logits, addition = (3 * torch.randn(rows, 40_000, generator=generator) for _ in range(2))
    addition[0] = 0.0
    uniforms = torch.rand(rows, 2, generator=generator, dtype=torch.float64)
    drawn = steered_tokens(logits, addition, Sampling(), uniforms)
    alone = [
        steered_tokens(*(part[row, None] for part in (logits, addition)), Sampling(), uniforms[row, None])
        for row in range(rows)
    ]
    tokens, logprobs, log_ratios, kl = drawn
    assert torch.equal(tokens, torch.cat([each[0] for each in alone]))
    assert torch.equal(tokens, draw(logits + addition, uniforms))
    frozen, tilted = (torch.log_softmax(each.double(), -1) for each in (logits, logits + addition))
    torch.testing.assert_close(logprobs.double(), frozen.gather(1, tokens), atol=5e-6, rtol=0)
    torch.testing.assert_close(log_ratios.double(), (tilted - frozen).gather(1, tokens), atol=5e-6, rtol=0)
    torch.testing.assert_close(kl, (tilted.exp() * (tilted - frozen)).sum(-1), atol=5e-6, rtol=0)
    assert kl[0] == 0.0 and not log_ratios[0].any()


def test_a_drawn_token_has_the_log_probability_of_the_same_token_among_the_likeliest() -> None:
    logits = torch.randn(16, 49152, generator=torch.Generator().manual_seed(0)) * 3
    tokens, logprobs = next_tokens(logits, Sampling(temperature=0.0), torch.zeros(16, 1))
    for row, likeliest in enumerate(top_alternatives(logits, 3)):
        assert likeliest[0] == (int(tokens[row, 0]), float(logprobs[row, 0]))
