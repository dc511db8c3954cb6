"""Steered sessions of the embedded engine, on a small one."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iro_server.decoding.base import SearchParams
from iro_server.decoding.beam import Beam
from iro_server.decoding.search import guided_search
from iro_server.engines import model_runner
from iro_server.engines.base import HEAD_STATE, Chunk, Sampling, Steering
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.output_head import read_output_head
from iro_server.engines.prompts import chat_prompt_ids
from iro_server.engines.sample import Distribution, divergence
from iro_server.engines.steering import BISECTIONS, within_room
from value_heads.length_features import KNOTS, NUM_LENGTH_FEATURES
from value_heads.prompt_features import FEATURES
from value_heads.tilt import Tilt, WordGates, sharpened, zero_tilt


@pytest.fixture(scope="module")
def engine(small_engine: EmbeddedEngine) -> EmbeddedEngine:
    return small_engine


@pytest.fixture(scope="module")
def prompt(engine: EmbeddedEngine) -> list[int]:
    text = "Write one sentence that uses the words river, lamp and garden."
    return chat_prompt_ids(engine.tokenizer, [{"role": "user", "content": text}])


@pytest.fixture(scope="module")
def tilt(engine: EmbeddedEngine) -> Tilt:
    """A bias, a map of the state and gates, all of a size that moves the draw."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, width = engine.frozen.head_weight.shape
    zero = zero_tilt(vocabulary, width, (), engine.info.eos_ids)
    return replace(
        zero,
        bias=torch.randn(vocabulary, generator=generator) * 0.3,
        state_factor=torch.randn(8, width + 1, generator=generator) * 0.02,
        token_factor=torch.randn(8, width, generator=generator) * 0.2,
        gates=torch.cat([torch.zeros(len(FEATURES), width), torch.tensor([[1.5], [0.1], [-0.3], [0.5], [-0.4]])], 1),
    )


def extend(engine: EmbeddedEngine, prompt: list[int], steering: Steering | None, sampling: Sampling) -> Chunk:
    async def run() -> Chunk:
        session = await engine.open(prompt, sampling, (HEAD_STATE,), steering)
        await session.extend([0], 4, 5)
        chunk = await session.extend([2, 0, 2], 2, 6)
        session.close()
        return chunk

    return asyncio.run(run())


def test_log_probabilities_are_the_frozen_models_and_ratios_those_of_the_proposal(
    engine: EmbeddedEngine, prompt: list[int], tilt: Tilt
) -> None:
    """Recomputed from the states that the tokens were drawn from, without the features of the prompt."""
    plain = replace(tilt, gates=torch.zeros_like(tilt.gates))
    chunk = extend(engine, prompt, Steering(plain, 1.5), Sampling(seed=1, temperature=0.8))
    states = chunk.hidden[HEAD_STATE]
    base = torch.log_softmax(engine.frozen.logits(states.flatten(0, 1)) / 0.8, -1)
    with_one = torch.cat([states.flatten(0, 1), torch.ones(states.shape[0] * states.shape[1], 1)], 1)
    added = tilt.bias + (with_one @ tilt.state_factor.T) @ (tilt.token_factor @ engine.frozen.head_weight.T)
    proposal = torch.log_softmax(base + 1.5 * added / 0.8, -1)
    drawn = chunk.tokens_RL.flatten()[:, None]
    assert chunk.log_ratios_RL is not None and chunk.kl_RL is not None
    assert torch.allclose(chunk.logprobs_RL.flatten(), base.gather(1, drawn)[:, 0], atol=1e-3)
    assert torch.allclose(chunk.log_ratios_RL.flatten(), (proposal - base).gather(1, drawn)[:, 0], atol=1e-3)
    assert torch.allclose(chunk.kl_RL.flatten(), (proposal.exp() * (proposal - base)).sum(1), atol=1e-3)


def test_a_tilt_that_changes_nothing_draws_the_frozen_models_tokens(engine: EmbeddedEngine, prompt: list[int]) -> None:
    zero = zero_tilt(*engine.frozen.head_weight.shape, (), engine.info.eos_ids)
    plain, steered = (extend(engine, prompt, steering, Sampling(seed=3)) for steering in (None, Steering(zero)))
    assert torch.equal(plain.tokens_RL, steered.tokens_RL)
    assert plain.kl_RL is None and steered.kl_RL is not None and steered.kl_RL.abs().max() < 1e-5


def test_a_stronger_tilt_of_the_prompts_words_says_more_of_them(
    engine: EmbeddedEngine, prompt: list[int], tilt: Tilt
) -> None:
    gates = replace(zero_tilt(*engine.frozen.head_weight.shape, (), engine.info.eos_ids), gates=tilt.gates)

    def words(strength: float) -> int:
        params = SearchParams(num_successors=16)
        search = guided_search(engine, prompt, params, Sampling(seed=1), 24, steering=Steering(gates, strength))
        texts = [engine.tokenizer.decode(final.tokens).lower() for final in asyncio.run(search).finals]
        return sum(word in text for text in texts for word in ("river", "lamp", "garden"))

    assert words(0.0) < words(5.0)


@pytest.mark.parametrize("params", [SearchParams(num_successors=8), SearchParams(beam_width=2, num_successors=4)])
def test_a_tilt_that_reads_lengths_ends_answers_where_it_says(
    engine: EmbeddedEngine, prompt: list[int], params: SearchParams
) -> None:
    """By the tokens of each row: -50 for a stop token after up to four of them, 25 after five, 100 after six."""
    assert KNOTS[2:4] == (4, 6)
    stop = torch.zeros(NUM_LENGTH_FEATURES)
    stop[2 * 3] = 150.0  # of the third interval of the first count
    zero = zero_tilt(*engine.frozen.head_weight.shape, (), engine.info.eos_ids)
    bias = zero.bias.clone()
    bias[list(engine.info.eos_ids)] = -50.0
    tilt = replace(zero, bias=bias, length_factor=torch.zeros(0, NUM_LENGTH_FEATURES), length_stop=stop)
    sampling = Sampling(seed=2, stop_ids=engine.info.eos_ids)
    search = guided_search(engine, prompt, params, sampling, 24, steering=Steering(tilt))
    lengths = [len(final.tokens) for final in asyncio.run(search).finals]
    assert set(lengths) <= {6, 7}


def test_different_tilts_in_one_batch_draw_what_each_draws_alone(
    engine: EmbeddedEngine, prompt: list[int], tilt: Tilt
) -> None:
    steerings = [None, Steering(tilt), Steering(tilt, 0.3), Steering(replace(tilt, bias=-tilt.bias), max_kl=2.0)]

    async def run(steering: Steering | None, seed: int) -> list[list[int]]:
        params, sampling = SearchParams(beam_width=2, num_successors=2, chunk_length=4), Sampling(seed=seed)
        finals = (await guided_search(engine, prompt, params, sampling, 16, steering=steering)).finals
        return [final.tokens for final in finals]

    async def together() -> list[list[list[int]]]:
        return await asyncio.gather(*(run(steering, seed) for seed, steering in enumerate(steerings)))

    alone = [asyncio.run(run(steering, seed)) for seed, steering in enumerate(steerings)]
    assert asyncio.run(together()) == alone


@pytest.mark.parametrize("most_rows", [1, 3])
def test_rows_that_are_steered_a_few_at_once_draw_what_all_draw_together(
    engine: EmbeddedEngine, prompt: list[int], tilt: Tilt, most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions of four rows and of two, with gates, lengths and limits of their own: their rows share blocks."""
    other_words = WordGates(-tilt.gates, tuple(prompt[:4]))
    lengths = torch.randn(8, NUM_LENGTH_FEATURES, generator=torch.Generator().manual_seed(1)) * 0.3
    richer = replace(tilt, length_factor=lengths, length_stop=torch.zeros(NUM_LENGTH_FEATURES), sharpness=0.3)
    steerings = [Steering(replace(richer, word_sets=(other_words,))), Steering(richer, max_kl=4.0), Steering(tilt, 0.5)]

    async def run(number: int, steering: Steering) -> list[Beam]:
        params = SearchParams(num_successors=2 + 2 * (number % 2))
        search = guided_search(engine, prompt, params, Sampling(seed=number), 12, steering=steering)
        return (await search).finals

    async def all_finals() -> list[Beam]:
        finals = await asyncio.gather(*(run(number, steering) for number, steering in enumerate(steerings)))
        return [final for of_search in finals for final in of_search]

    together = asyncio.run(all_finals())
    monkeypatch.setattr(model_runner, "rows_at_once", lambda logits_MV: most_rows)
    apart = asyncio.run(all_finals())
    assert [final.tokens for final in apart] == [final.tokens for final in together]
    assert [final.kl for final in apart] == pytest.approx([final.kl for final in together], abs=1e-3)


@pytest.mark.parametrize("max_kl", [0.0, 0.5, 3.0])
def test_an_answer_moves_no_further_than_it_may(
    engine: EmbeddedEngine, prompt: list[int], tilt: Tilt, max_kl: float
) -> None:
    params, sampling = SearchParams(num_successors=4), Sampling(seed=2)

    def finals(limit: float | None):
        steering = Steering(tilt, 3.0, limit)
        return asyncio.run(guided_search(engine, prompt, params, sampling, 20, steering=steering)).finals

    assert min(final.kl for final in finals(None)) > 3
    assert all(max_kl - 0.3 <= final.kl <= max_kl + 1e-3 for final in finals(max_kl))


def test_at_temperature_0_the_likeliest_token_of_the_proposal_is_taken(
    engine: EmbeddedEngine, prompt: list[int], tilt: Tilt
) -> None:
    chunk = extend(engine, prompt, Steering(replace(tilt, gates=torch.zeros_like(tilt.gates))), Sampling(temperature=0))
    states = chunk.hidden[HEAD_STATE][0]
    with_one = torch.cat([states, torch.ones(len(states), 1)], 1)
    added = tilt.bias + (with_one @ tilt.state_factor.T) @ (tilt.token_factor @ engine.frozen.head_weight.T)
    assert chunk.tokens_RL[0].tolist() == (engine.frozen.logits(states) + added).argmax(-1).tolist()


def test_top_p_keeps_the_likeliest_tokens_of_the_proposal(
    engine: EmbeddedEngine, prompt: list[int], tilt: Tilt
) -> None:
    """Of q, not of the frozen model, most of whose own nucleus is then never drawn. Nats are those of all of q."""
    plain = replace(tilt, gates=torch.zeros_like(tilt.gates))
    chunk = extend(engine, prompt, Steering(plain, 3.0), Sampling(seed=1, top_p=0.2))
    states = chunk.hidden[HEAD_STATE].flatten(0, 1)
    base = engine.frozen.logits(states).log_softmax(-1)
    with_one = torch.cat([states, torch.ones(len(states), 1)], 1)
    added = tilt.bias + (with_one @ tilt.state_factor.T) @ (tilt.token_factor @ engine.frozen.head_weight.T)
    proposal = (base + 3.0 * added).log_softmax(-1)
    drawn = chunk.tokens_RL.flatten()[:, None]

    def in_nucleus(logprobs: torch.Tensor) -> torch.Tensor:
        probs = logprobs.exp()
        likelier = torch.where(probs > probs.gather(1, drawn), probs, 0).sum(1)
        return likelier < 0.2

    assert in_nucleus(proposal).all() and not in_nucleus(base).all()
    assert chunk.kl_RL is not None
    assert torch.allclose(chunk.kl_RL.flatten(), (proposal.exp() * (proposal - base)).sum(1), atol=1e-3)


@pytest.mark.parametrize("schema", [None, '{"type": "object", "properties": {"a": {"type": "string"}}}'])
def test_a_sharpened_tilt_draws_what_the_tilt_draws_at_a_lower_temperature(
    engine: EmbeddedEngine, prompt: list[int], tilt: Tilt, schema: str | None
) -> None:
    """Token for token, where the tilt is none and half as strong; its KL is from the frozen model at temperature 1."""
    zero = zero_tilt(len(tilt.bias), tilt.token_factor.shape[1], (), tilt.stop_ids)
    sampling = Sampling(seed=3, schema=schema, stop_ids=tilt.stop_ids)
    cooler = extend(engine, prompt, None, replace(sampling, temperature=0.5))
    chunk = extend(engine, prompt, Steering(sharpened(zero, 2.0), 0.5), sampling)
    assert chunk.tokens_RL.tolist() == cooler.tokens_RL.tolist()
    kl_RL = chunk.kl_RL
    assert kl_RL is not None and torch.isfinite(kl_RL).all() and kl_RL.max() > 0
    if schema is None:
        logprobs = engine.frozen.logits(chunk.hidden[HEAD_STATE]).log_softmax(-1)
        q = (logprobs * 2).log_softmax(-1)
        assert torch.allclose(kl_RL, (q.exp() * (q - logprobs)).sum(-1).float(), atol=1e-3)


def test_a_temperature_is_that_of_the_proposal(engine: EmbeddedEngine, prompt: list[int], tilt: Tilt) -> None:
    """As of any model: of frozen model and tilt together."""
    cooler = extend(engine, prompt, Steering(tilt), Sampling(seed=3, temperature=0.5))
    sharper = extend(engine, prompt, Steering(sharpened(tilt, 1.0)), Sampling(seed=3))
    assert cooler.tokens_RL.tolist() == sharper.tokens_RL.tolist()
    logprobs = (engine.frozen.logits(cooler.hidden[HEAD_STATE]) * 2).log_softmax(-1)
    expected = logprobs.gather(2, cooler.tokens_RL[..., None])[..., 0]
    torch.testing.assert_close(cooler.logprobs_RL, expected, atol=1e-3, rtol=1e-4)


def test_a_tilt_of_another_vocabulary_is_refused(engine: EmbeddedEngine, prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="the tilt is of 7 tokens"):
        asyncio.run(engine.open(prompt, Sampling(), (), Steering(zero_tilt(7, 576, (), ()))))


def test_the_length_of_states_is_that_of_the_model_directory(engine: EmbeddedEngine, small_model: Path) -> None:
    assert engine.frozen.state_length == pytest.approx(read_output_head(small_model).state_length)
    norm = engine.frozen.decoder.norm.weight
    assert engine.frozen.state_length == pytest.approx(float(norm.norm()))


def test_a_tilt_that_nobody_holds_is_forgotten(engine: EmbeddedEngine, prompt: list[int]) -> None:
    vocabulary, width = engine.frozen.head_weight.shape
    tilt = zero_tilt(vocabulary, width, (), engine.info.eos_ids)
    bound = weakref.ref(engine._bound(tilt))
    gc.collect()
    assert bound() is not None
    del tilt
    gc.collect()
    assert bound() is None


def test_rows_without_room_cost_no_distribution_and_a_bisection_one_of_the_frozen_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_rows: list[int] = []
    of = Distribution.of

    def counted(logits_MV: torch.Tensor) -> Distribution:
        num_rows.append(len(logits_MV))
        return of(logits_MV)

    monkeypatch.setattr(Distribution, "of", counted)
    logits, addition = torch.randn(2, 4, 600, generator=torch.Generator().manual_seed(0))
    assert not within_room(logits, addition, torch.zeros(4)).any() and num_rows == []
    within_room(logits, addition, torch.tensor([0.0, 0.1, torch.inf, 0.0], dtype=torch.float64))
    assert num_rows == [2, 2, *[1] * (BISECTIONS + 1)]  # those with room; then the one that is over


def test_room_that_rounding_would_fill_is_none() -> None:
    """Such a step has the frozen model's distribution, whatever else is in the batch."""
    generator = torch.Generator().manual_seed(0)
    logits, addition = (torch.randn(4, 4000, generator=generator) for _ in range(2))
    room = torch.tensor([0.0, 1e-6, 0.1, torch.inf], dtype=torch.float64)
    scaled = within_room(logits, addition, room)
    assert not scaled[:2].any() and torch.equal(scaled[3], addition[3])
    taken = divergence(logits, scaled)
    assert 0.099 < taken[2] <= 0.1
    exact = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=(logits + scaled).double()),
        torch.distributions.Categorical(logits=logits.double()),
    )
    assert torch.allclose(taken, exact, atol=1e-6)
