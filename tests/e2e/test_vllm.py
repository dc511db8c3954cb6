"""The engine over vLLM against real vLLM servers of the real model."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.processes import VLLMProcess
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.text import TextEngine
from iro_server.engines.vllm import VLLMEngine
from tests.e2e.conftest import vllm
from tests.e2e.test_api_server import COUNT_LETTER, MODEL, ROWS, SMALL, say, server, settings  # noqa: F401
from tests.iro_server.api.serving import ended, upload
from value_heads import LoraBackbone, LoraValues

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not VLLMProcess.python.exists(), reason=f"no {VLLMProcess.python}: `make vllm` installs vLLM"),
]
PARAMS = SearchParams(beam_width=2, num_successors=2, chunk_length=8)


def search(engine, prompt, seed: int, scorer=None, params=PARAMS, max_tokens=24, salt=None):
    sampling = Sampling(seed=seed, stop_ids=engine.info.eos_ids, salt=salt)
    return guided_search(engine, prompt, params, sampling, max_tokens, scorer)


def test_token_ids_and_log_probabilities_are_the_models_own(engine, prompt, model_dir):
    async def two_rounds():
        session = await engine.open(prompt, Sampling(seed=1))
        return await session.extend([0], 3, 6), await session.extend([2, 0, 2], 2, 5)

    first, second = asyncio.run(two_rounds())
    parents = [2, 2, 0, 0, 2, 2]
    tokens = torch.cat([first.tokens_RL[parents], second.tokens_RL], dim=1)
    logprobs = torch.cat([first.logprobs_RL[parents], second.logprobs_RL], dim=1)
    assert len({tuple(row) for row in tokens.tolist()}) == 6
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.cat([torch.tensor([prompt] * 6), tokens], dim=1)).logits[:, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(2, tokens[:, :, None]).squeeze(2)
    torch.testing.assert_close(logprobs, expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    ],
)
def test_answers_fit_keywords_that_vllms_default_backend_ignores(engine, schema):
    """With one space at most beside commas and colons, though the model likes more."""
    prompt = engine.tokenizer("Say elephant: ")["input_ids"]
    properties = {"a": schema, "b": {"const": [1, 2]}}
    whole = {"type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": False}
    for seed in range(3):
        sampling = Sampling(seed=seed, stop_ids=engine.info.eos_ids, schema=json.dumps(whole))
        (final,) = asyncio.run(guided_search(engine, prompt, SearchParams(), sampling, 48)).finals
        text = engine.tokenizer.decode(final.tokens, skip_special_tokens=True)
        jsonschema.validate(json.loads(text), whole)
        assert final.finish_reason == "stop" and "  " not in text and "\n" not in text


@pytest.mark.parametrize("options", [{"schema": '{"type": "string", "minLength": 40}'}, {"frequency_penalty": 1.5}])
def test_a_single_row_with_a_schema_or_penalties_streams_as_it_is_drawn_at_once(engine, prompt, options):
    sampling = Sampling(seed=4, stop_ids=engine.info.eos_ids, **options)

    def drawn(params: SearchParams) -> tuple[list[int], list[int], int]:
        before, lengths = engine.health().replicas[0]["requests"], []
        work = guided_search(
            engine, prompt, params, sampling, 24, on_agreed=lambda agreed: lengths.append(len(agreed.tokens))
        )
        (final,) = asyncio.run(work).finals
        return final.tokens, lengths, engine.health().replicas[0]["requests"] - before

    tokens, _, _ = drawn(SearchParams())
    in_parts, lengths, num_requests = drawn(SearchParams(chunk_length=1))
    assert in_parts == tokens and num_requests == 1
    assert len(lengths) > 3 and lengths[-1] == len(tokens)  # not one by one on a busy machine


@pytest.mark.slow(11)
def test_equal_seeds_draw_the_same(engine, prompt):
    one, same, other = [asyncio.run(search(engine, prompt, seed)) for seed in (5, 5, 6)]
    assert [final.tokens for final in one.finals] == [final.tokens for final in same.finals]
    assert [final.tokens for final in one.finals] != [final.tokens for final in other.finals]


def test_a_row_drawn_token_by_token_is_one_request_and_the_row_drawn_at_once(engine, prompt):
    def drawn(params: SearchParams) -> tuple[list[int], list[float], int]:
        before = engine.health().replicas[0]["requests"]
        (final,) = asyncio.run(search(engine, prompt, 4, params=params)).finals
        return final.tokens, final.logprobs, engine.health().replicas[0]["requests"] - before

    tokens, logprobs, _ = drawn(SearchParams())
    tokens_in_parts, logprobs_in_parts, num_requests = drawn(SearchParams(chunk_length=1))
    assert tokens_in_parts == tokens and num_requests == 1
    assert logprobs_in_parts == pytest.approx(logprobs, abs=2e-3)


def test_a_row_over_text_alone_streams_as_it_is_drawn_at_once(engine, served, prompt, model_dir):
    with TextEngine(model_dir, Endpoints((served.url,), kind="text")) as text_engine:

        def drawn(params: SearchParams) -> tuple[list[int], int]:
            before = text_engine.health().replicas[0]["requests"]
            (final,) = asyncio.run(search(text_engine, prompt, 4, params=params)).finals
            return final.tokens, text_engine.health().replicas[0]["requests"] - before

        tokens, _ = drawn(SearchParams())
        in_parts, num_requests = drawn(SearchParams(chunk_length=1))
        assert engine.tokenizer.decode(in_parts) == engine.tokenizer.decode(tokens) and num_requests == 1


def test_a_prefix_is_read_once_but_not_by_another_tenant(engine, prompt):
    def cached(salt: str) -> int:
        before = engine.health().replicas[0]["cached_tokens"]
        asyncio.run(search(engine, prompt, 1, params=SearchParams(), max_tokens=2, salt=salt))
        return engine.health().replicas[0]["cached_tokens"] - before

    assert [cached(salt) > 0 for salt in ("alice", "alice", "bob", "bob")] == [False, True, False, True]


def test_later_rounds_find_their_beams_in_the_cache(engine, prompt):
    before = engine.health().replicas[0]
    asyncio.run(search(engine, prompt, 9, max_tokens=32, salt="rounds"))
    after = engine.health().replicas[0]
    read, cached = (after[name] - before[name] for name in ("prompt_tokens", "cached_tokens"))
    assert cached > 0.4 * read


def test_a_guided_search_scores_what_vllm_drew(engine, prompt, model_dir):
    backbone = LoraBackbone(model_dir, 3)
    backbone.add_iteration()
    torch.nn.init.normal_(backbone.heads[0].weight, generator=torch.Generator().manual_seed(0))
    values = LoraValues(backbone, [2.0])

    async def both():
        return await asyncio.gather(*(search(engine, prompt, seed, values) for seed in (1, 2)))

    for result in asyncio.run(both()):
        assert result.usage.value_tokens == result.usage.base_tokens > 0
        for final in result.finals:
            with torch.no_grad():
                value = backbone.values(0, torch.tensor([[*prompt, *final.tokens]]))[0, -1] / 2
            assert final.value == pytest.approx(float(value), abs=1e-3)
        assert [f.value for f in result.finals] == sorted((f.value for f in result.finals), reverse=True)


@pytest.mark.slow
def test_a_job_aligns_a_model_that_vllm_serves(served, settings):  # noqa: F811
    settings = settings.model_copy(update={"engine_urls": [served.url]})
    with server(settings) as (_, client):
        grader = {"type": "python", "name": "letters", "source": COUNT_LETTER}
        hyperparameters = {"n_epochs": 1}
        reinforcement = {"grader": grader, "iro": SMALL | {"backbone_layers": 2}, "hyperparameters": hyperparameters}
        method = {"type": "reinforcement", "reinforcement": reinforcement}
        created = client.fine_tuning.jobs.create(model=MODEL, training_file=upload(client, ROWS), method=method, seed=3)
        job = ended(client, created.id, seconds=1800)
        assert job.status == "succeeded", job.error
        checkpoint = client.fine_tuning.jobs.checkpoints.list(job.id).data[0]
        guided = say(client, checkpoint.fine_tuned_model_checkpoint)
        assert guided.usage.value_tokens == guided.usage.base_tokens > 0
        streamed = "".join(c.choices[0].text for c in say(client, MODEL, stream=True))
        assert streamed


@pytest.mark.slow
def test_replicas_that_stop_or_die_in_mid_search_cost_no_request(served, model_dir, prompt, tmp_path):
    class Quick(VLLMEngine):
        silence = 30.0

    async def disturbed(how) -> list:
        works = [asyncio.create_task(search(engine, prompt, seed, max_tokens=32)) for seed in range(4)]
        await asyncio.sleep(2)
        how()
        return await asyncio.gather(*works)

    with (
        vllm(model_dir, tmp_path) as other,
        Quick(model_dir, Endpoints((served.url, other.url), patience=120)) as engine,
    ):
        results = asyncio.run(disturbed(lambda: served.signal(signal.SIGSTOP)))
        assert all(len(final.tokens) > 0 for result in results for final in result.finals)
        assert [replica["up"] for replica in engine.health().replicas] == [False, True]
        served.signal(signal.SIGCONT)
        deadline = time.monotonic() + 120
        while not all(replica["up"] for replica in engine.health().replicas):
            assert time.monotonic() < deadline, "the replica that goes on is not used again"
            time.sleep(0.5)
        results = asyncio.run(disturbed(lambda: other.signal(signal.SIGKILL)))
        assert all(len(final.tokens) > 0 for result in results for final in result.finals)
        assert engine.health().replicas[0]["requests"] > 0
