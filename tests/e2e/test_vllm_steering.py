"""Tilts on a real vLLM server of the real model: adapters of the output head and ``logit_bias``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import httpx
import pytest
import torch

from benchmarks.processes import VLLMProcess
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines import vllm_adapters
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.endpoints import Endpoints, EngineUnavailable
from iro_server.engines.vllm import VLLMEngine
from value_heads.prompt_features import FEATURES
from value_heads.tilt import Tilt, fold_tilts, sharpened
from value_heads.tilt_export import head_adapter, without_static

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not VLLMProcess.python.exists(), reason=f"no {VLLMProcess.python}: `make vllm` installs vLLM"),
]
TOP = 20  # alternatives that vLLM reports


@pytest.fixture(scope="module")
def tilt(state_tilt) -> Tilt:
    """With gates on words too."""
    width = state_tilt.token_factor.shape[1]
    words = torch.tensor([[1.5], [0.1], [-0.3], [0.5], [-0.4]])
    return replace(state_tilt, gates=torch.cat([torch.zeros(len(FEATURES), width), words], 1))


def without_words(tilt: Tilt) -> Tilt:
    return replace(tilt, gates=tilt.gates * torch.tensor([[0.0]] * 4 + [[1.0]]))


def only_bias(tilt: Tilt) -> Tilt:
    return replace(without_words(tilt), state_factor=tilt.state_factor[:0], token_factor=tilt.token_factor[:0])


async def likeliest_tokens(engine: VLLMEngine, prompt: list[int], steering: Steering | None) -> dict[int, float]:
    """Log-probabilities of the likeliest next tokens, as the session's own request draws them."""
    session = await engine.open(prompt, Sampling(), (), steering)
    body = session.request(0, 1, 1, seed=1) | {"logprobs": TOP, "return_tokens_as_token_ids": True}

    def read(payload):
        top = payload["choices"][0]["logprobs"]["top_logprobs"][0]
        return {int(name.removeprefix("token_id:")): logprob for name, logprob in top.items()}

    likeliest, _ = await engine.replicas.complete(body, read, adapter=session.adapter)
    return likeliest


def next_token(engine: VLLMEngine, prompt: list[int], steering: Steering | None) -> dict[int, float]:
    return engine.submit(likeliest_tokens(engine, prompt, steering)).result()


def expected_logits(model, states: torch.Tensor, tilt: Tilt | None, strength: float = 1.0) -> torch.Tensor:
    """[V] after the prompt. The adapter's own static part: a direction stands for the bias."""
    with torch.no_grad():
        logits = model.lm_head(states[-1:])
        if tilt is not None:
            adapter = head_adapter(tilt, model.lm_head.weight)
            logits = logits + strength * without_static(adapter, tilt.direction).additions(states[-1:])
    return logits[0]


def test_an_adapter_draws_as_the_tilt_does(engine, prompt, model, states, tilt) -> None:
    """The base, two strengths of one tilt, another tilt, and tilts folded to more ranks than the server takes, asked
    of one server."""
    plain, other = without_words(tilt), replace(without_words(tilt), bias=-tilt.bias)
    asked = [(None, 1.0), (plain, 1.0), (plain, 2.0), (other, 1.0), (fold_tilts([plain] * 5, [0.3] * 5), 1.0)]
    for steered, strength in asked:
        likeliest = next_token(engine, prompt, steered and Steering(steered, strength))
        expected = expected_logits(model, states, steered, strength).log_softmax(-1)
        for token, logprob in likeliest.items():
            assert logprob == pytest.approx(float(expected[token]), abs=1e-3)


def sampled(engine, prompt, steering, seeds: range) -> list[int]:
    """One token of each seed."""

    async def draw() -> list[int]:
        sessions = [await engine.open(prompt, Sampling(seed=seed * 1000), (), steering) for seed in seeds]
        chunks = await asyncio.gather(*(session.extend([0], 32, 1) for session in sessions))
        return [token for chunk in chunks for token in chunk.tokens_RL[:, 0].tolist()]

    return asyncio.run(draw())


def test_the_base_stays_the_base_beside_more_adapters_than_a_batch_holds(engine, prompt, model, states, tilt) -> None:
    """On a CPU vLLM gives a request without an adapter that of its last slot."""
    for strength in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5):
        next_token(engine, prompt, Steering(without_words(tilt), strength))
    expected = expected_logits(model, states, None).log_softmax(-1)
    for token, logprob in next_token(engine, prompt, None).items():
        assert logprob == pytest.approx(float(expected[token]), abs=1e-3)


@pytest.mark.slow(60)
def test_each_answer_is_its_own_models_while_adapters_come_and_go(engine, served, prompt, model, states, tilt) -> None:
    """The base and six models, more than a batch holds, asked for at once; a loaded adapter is unloaded again and
    again meanwhile."""
    strengths = (None, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
    steerings = [strength and Steering(without_words(tilt), strength) for strength in strengths]

    async def ask(rounds: int) -> list[list[dict[int, float]]]:
        return [
            await asyncio.gather(*(likeliest_tokens(engine, prompt, steering) for steering in steerings))
            for _ in range(rounds)
        ]

    asking, unloaded = engine.submit(ask(12)), 0
    while not asking.done():
        if names := list(engine.replicas.all[0].adapters):
            name = names[unloaded % len(names)]
            response = httpx.post(f"{served.url}/unload_lora_adapter", json={"lora_name": name}, timeout=60)
            unloaded += response.status_code == 200
        time.sleep(0.02)
    assert unloaded >= 5
    for answers in asking.result():
        for strength, answer in zip(strengths, answers, strict=True):
            tilted = None if strength is None else without_words(tilt)
            expected = expected_logits(model, states, tilted, strength or 0.0).log_softmax(-1)
            assert len(answer) >= TOP
            for token, logprob in answer.items():
                assert logprob == pytest.approx(float(expected[token]), abs=5e-3)


@pytest.mark.slow(60)
def test_a_bias_without_an_adapter_draws_as_the_tilt_does(engine, served, model_dir, prompt, model, states, tilt):
    """vLLM reports log-probabilities before ``logit_bias``: shares of 512 draws, against their exact probabilities."""
    bias = replace(only_bias(tilt), direction=None)
    tokens = torch.tensor(sampled(engine, prompt, Steering(bias, 2.0), range(16)))
    with VLLMEngine(model_dir, Endpoints((served.url,))) as without_adapters:
        assert without_adapters.info.steers == {"bias", "words", "sharpness"}
        with pytest.raises(ValueError, match="no tilt has states"):
            asyncio.run(without_adapters.open(prompt, Sampling(), (), Steering(without_words(tilt))))
    with torch.no_grad():
        static = head_adapter(bias, model.lm_head.weight).static
        probabilities = (model.lm_head(states[-1]) + 2.0 * static).softmax(-1)
    likeliest = probabilities.topk(5)
    for probability, token in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
        deviation = (probability * (1 - probability) / len(tokens)) ** 0.5
        assert abs(float((tokens == token).float().mean()) - probability) < 4.5 * deviation


@pytest.mark.slow(40)
def test_a_sharpened_tilt_draws_as_in_process(engine, prompt, model, states, tilt) -> None:
    """Shares of 512 draws, against the exact probabilities of the tilt at two thirds of the temperature."""
    plain = without_words(tilt)
    tokens = torch.tensor(sampled(engine, prompt, Steering(sharpened(plain, 0.5)), range(16)))
    likeliest = (expected_logits(model, states, plain) * 1.5).softmax(-1).topk(5)
    for probability, token in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True):
        deviation = (probability * (1 - probability) / len(tokens)) ** 0.5
        assert abs(float((tokens == token).float().mean()) - probability) < 4.5 * deviation


@pytest.mark.slow(40)
def test_words_of_the_prompt_are_drawn_as_the_tilt_says(engine, prompt, model, states, tilt) -> None:
    """Shares of 512 draws in the prompt's words, against their exact probability; words that are said lose the tilt."""
    gates = torch.zeros_like(tilt.gates)
    gates[FEATURES.index("prompt"), -1] = 3.0
    words = replace(only_bias(tilt), bias=torch.zeros_like(tilt.bias), gates=gates)

    async def biases() -> tuple[dict[str, float], dict[str, float]]:
        session = await engine.open(prompt, Sampling(seed=1), (), Steering(words))
        before = session.request(0, 1, 1, seed=1)["logit_bias"]
        await session.extend([0], 1, 4)
        return before, session.request(0, 1, 1, seed=1)["logit_bias"]

    before, after = asyncio.run(biases())
    assert after.keys() < before.keys() and set(before.values()) == {3.0}
    tokens = torch.tensor([int(token) for token in before])
    assert set(prompt) <= set(tokens.tolist())
    logits = model.lm_head(states[-1]).detach()
    logits[tokens] += 3.0
    probability = float(logits.softmax(-1)[tokens].sum())
    drawn = torch.tensor(sampled(engine, prompt, Steering(words), range(16)))
    deviation = (probability * (1 - probability) / len(drawn)) ** 0.5
    assert abs(float(torch.isin(drawn, tokens).float().mean()) - probability) < 4.5 * deviation


@pytest.mark.slow(15)
def test_rows_of_several_requests_are_whole(engine, prompt, model, tilt) -> None:
    """Log-probabilities of 20 tokens of each row, under the adapted model; a stopped row ends at its stop token."""
    params, stop_ids = SearchParams(num_successors=4), (engine.tokenizer.encode(" the")[0],)
    adapter = without_static(head_adapter(tilt, model.lm_head.weight), tilt.direction)
    finals = []
    for sampling in (Sampling(seed=4), Sampling(seed=4, stop_ids=stop_ids)):
        search = guided_search(engine, prompt, params, sampling, 20, steering=Steering(tilt))
        finals += asyncio.run(search).finals
    assert {final.finish_reason for final in finals} == {"stop", "length"}
    for final in finals:
        assert (len(final.tokens) == 20) if final.finish_reason == "length" else final.tokens[-1] in stop_ids
        with torch.no_grad():
            states = model.model(torch.tensor([[*prompt, *final.tokens]])).last_hidden_state[0, len(prompt) - 1 : -1]
            logprobs = (model.lm_head(states) + adapter.additions(states)).log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(final.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(final.logprobs), expected, atol=2e-3, rtol=1e-3)


def test_an_adapter_that_a_server_has_lost_is_loaded_again(engine, served, prompt, tilt) -> None:
    """As after a restart of the server."""
    steering = Steering(without_words(tilt))
    before = next_token(engine, prompt, steering)
    name = next(reversed(engine.replicas.all[0].adapters))
    gone = httpx.post(f"{served.url}/unload_lora_adapter", json={"lora_name": name}, timeout=60)
    assert gone.status_code == 200
    after = next_token(engine, prompt, steering)
    shared = sorted(after.keys() & before.keys())  # each also has the token that was drawn, likely or not
    assert len(shared) >= TOP - 1
    assert [after[token] for token in shared] == pytest.approx([before[token] for token in shared], abs=5e-3)


def test_an_adapter_that_cannot_be_loaded_is_an_error_and_no_plain_answer(
    served, model_dir, prompt, tilt, tmp_path, monkeypatch
):
    """Of a rank above the server's limit, which is lower than Iro takes it for."""
    rank = 40
    monkeypatch.setattr(vllm_adapters, "MAX_RANK", 64)
    generator = torch.Generator().manual_seed(0)
    width = tilt.gates.shape[1] - 1
    high = replace(
        without_words(tilt),
        state_factor=torch.randn(rank, width + 1, generator=generator),
        token_factor=torch.randn(rank, width, generator=generator),
    )
    endpoints = Endpoints((served.url,), adapters=tmp_path / "a", patience=1.0)
    with VLLMEngine(model_dir, endpoints) as engine:
        for _ in range(4):
            with pytest.raises(EngineUnavailable, match=r"cannot load the adapter of a model.*rank"):
                asyncio.run(guided_search(engine, prompt, SearchParams(), Sampling(), 2, steering=Steering(high)))
        assert engine.health().up  # one model's adapter is no fault of the server's, which others use
        assert asyncio.run(guided_search(engine, prompt, SearchParams(), Sampling(), 2)).finals
