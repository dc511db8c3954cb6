"""The engine over vLLM against endpoints that can be told to misbehave (tests/e2e/test_vllm.py has real ones)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from transformers import AutoModel

from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.embedding import Embedding
from iro_server.engines.endpoints import EngineUnavailable, SchemaViolated, base_url
from tests.iro_server.api.byte_engine import byte_tokenizer
from tests.iro_server.engines.fake_endpoint import END, FakeEndpoint, tokens_of
from tests.iro_server.engines.quick_engine import (
    PARAMS,
    PROMPT,
    SAMPLING,
    rounds,
)


async def test_rows_are_the_endpoints_own_tokens_and_each_round_continues_them(served):
    fake = FakeEndpoint()
    engine = served(fake)
    session = await engine.open(PROMPT, SAMPLING)
    first = await session.extend([0], 3, 5)
    (body,) = fake.bodies
    assert body["prompt"] == PROMPT and body["n"] == 3 and body["max_tokens"] == 5
    said = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "cache_salt": "whose",
        "stop_token_ids": [END],
        "model": "bytes",
    }
    assert said.items() <= body.items()
    expected = [tokens_of(PROMPT, body["seed"] + i, 5) for i in range(3)]
    assert [row[:n].tolist() for row, n in zip(first.tokens_RL, first.lengths_R, strict=True)] == expected
    assert first.stopped_R.tolist() == [row[-1] == END for row in expected]
    assert first.logprobs_RL[0, 0] == -0.5
    going = [i for i, row in enumerate(expected) if row[-1] != END][:2]
    await session.extend(going, 2, 5)
    assert sorted(each["prompt"] for each in fake.bodies[1:]) == sorted(PROMPT + expected[i] for i in going)
    assert len({each["seed"] for each in fake.bodies}) == 3


async def test_a_request_has_a_seed_only_where_the_caller_gave_one(served):
    """vLLM draws the rows of a batch one by one where any of them has a seed."""
    fake = FakeEndpoint()
    session = await served(fake).open(PROMPT, Sampling(stop_ids=(END,)))
    chunk = await session.extend([0], 3, 5)
    assert len(chunk.tokens_RL) == 3
    assert all("seed" not in body for body in fake.bodies)


async def test_without_a_seed_a_round_is_one_request(served):
    """A beam's rows continue that beam, in the order of the parents, however often each occurs."""
    fake = FakeEndpoint()
    session = await served(fake).open(PROMPT, Sampling(stop_ids=(END,)))
    await session.extend([0], 64, 5)
    later, earlier = [row for row, beam in enumerate(session.prefixes) if beam[-1] != END][1::-1]
    beams = [session.prefixes[later], session.prefixes[earlier]]
    fake.bodies.clear()
    chunk = await session.extend([later, earlier], 32, 5)
    (body,) = fake.bodies
    assert body["prompt"] == beams and body["n"] == 32
    rows = [row[:length].tolist() for row, length in zip(chunk.tokens_RL, chunk.lengths_R, strict=True)]
    assert session.prefixes == [beams[place // 32] + row for place, row in enumerate(rows)]
    first, second = (next(r for r in range(s, s + 32) if rows[r][-1] != END) for s in (0, 32))
    fake.bodies.clear()
    await session.extend([first, second, first], 1, 5)
    assert sorted((len(body["prompt"]), body["n"]) for body in fake.bodies) == [(1, 1), (1, 2)]


async def test_chunks_are_padded_and_say_how_long_rows_are(served):
    engine = served(FakeEndpoint())
    session = await engine.open(PROMPT, Sampling(seed=2, stop_ids=(END,)))
    chunk = await session.extend([0], 64, 12)
    ended = chunk.lengths_R < 12
    assert ended.any() and not ended.all()
    assert chunk.tokens_RL.shape == chunk.logprobs_RL.shape == (64, int(chunk.lengths_R.max()))
    last = chunk.tokens_RL.gather(1, chunk.lengths_R[:, None] - 1).squeeze(1)
    assert torch.equal(last == END, chunk.stopped_R)
    assert chunk.stopped_R[ended].all()


async def test_layer_0_is_the_models_own_embedding(served, model_dir):
    session = await served(FakeEndpoint()).open(PROMPT, Sampling(seed=2, stop_ids=(END,)), layers=[0])
    chunk = await session.extend([0], 8, 6)
    assert chunk.hidden.keys() == {0}
    model = AutoModel.from_pretrained(model_dir, dtype=torch.float32)
    expected = model(chunk.tokens_RL, output_hidden_states=True).hidden_states[0]
    for row, length in enumerate(chunk.lengths_R):
        assert torch.equal(chunk.hidden[0][row, :length], expected[row, :length])


def test_ids_past_the_table_embed_to_nothing(model_dir):
    embedding = Embedding(model_dir)
    states = embedding(torch.tensor([[72, 10**6]]))
    assert states[0, 0].abs().sum() > 0 and states[0, 1].abs().sum() == 0


async def test_equal_seeds_draw_the_same_and_a_parent_that_is_repeated_draws_twice(served):
    engine = served(FakeEndpoint())
    (_, one), (_, same), (_, other) = [await rounds(engine, [0], [0, 0], seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(one.tokens_RL, same.tokens_RL)
    assert not torch.equal(one.tokens_RL, other.tokens_RL)
    assert len({tuple(row) for row in one.tokens_RL.tolist()}) == 4


def test_what_the_engine_cannot_do_is_said(served, model_dir):
    engine = served(FakeEndpoint())
    assert engine.info.max_length == 256 and engine.info.eos_ids == (END,)
    with pytest.raises(ValueError, match="past layer 0"):
        asyncio.run(engine.open(PROMPT, SAMPLING, layers=[0, 1]))
    with pytest.raises(ValueError, match="256 tokens; the model takes 1 to 255"):
        asyncio.run(engine.open([1] * 256, SAMPLING))
    with pytest.raises(ValueError, match="drawn at random"):
        asyncio.run(engine.open(PROMPT, replace(SAMPLING, likeliest=True)))
    with pytest.raises(ValueError, match='engine kind "text"'):
        served(FakeEndpoint(ids=False))
    with pytest.raises(ValueError, match=r"no model 'other', only: bytes"):
        served(FakeEndpoint(), model="other")
    for url in ("localhost:8001", "ftp://host"):
        with pytest.raises(ValueError, match="base URL"):
            base_url(url)
    with pytest.raises(ValueError, match="IRO_ENGINE_KEY"):
        base_url("http://user:secret@host/v1")
    assert base_url("http://host:1/") == "http://host:1/v1" and base_url("http://host/api/v1/") == "http://host/api/v1"


async def test_a_session_that_is_closed_lets_go_of_its_request(served):
    fake = FakeEndpoint()
    engine = served(fake)
    fake.turn("hang")
    session = await engine.open(PROMPT, SAMPLING)
    work = asyncio.create_task(session.extend([0], 4, 4))
    while not fake.bodies:
        await asyncio.sleep(0.01)
    session.close()
    with pytest.raises(asyncio.CancelledError):
        await work
    await asyncio.sleep(0.05)
    assert engine.health().replicas[0]["rows"] == 0


def test_a_schema_and_penalties_are_passed_on_in_one_round(served):
    """vLLM resumes neither from one chunk to the next."""
    fake = FakeEndpoint()
    engine = served(fake)
    fake.turn(writing("7"), times=1)
    biased = Sampling(seed=1, stop_ids=(END,), logit_bias=((7, 2.0),))
    sampling = replace(biased, schema='{"type": "integer"}', frequency_penalty=0.5)
    result = asyncio.run(guided_search(engine, PROMPT, PARAMS, sampling, 16))
    (body,) = fake.bodies
    assert result.usage.rounds == 1 and (body["n"], body["max_tokens"]) == (6, 16)
    separators = {"whitespace_flexible": False, "item_separator": " ?, ?", "key_separator": " ?: ?"}
    assert body["structured_outputs"] == {"json": {"type": "integer", "x-guidance": separators}}
    assert body["logit_bias"] == {"7": 2.0}
    assert (body["frequency_penalty"], body["presence_penalty"]) == (0.5, 0.0)
    assert result.usage.cached_tokens == 3
    fake.bodies.clear()
    assert asyncio.run(guided_search(engine, PROMPT, PARAMS, biased, 16)).usage.rounds == 4
    assert all("structured_outputs" not in body for body in fake.bodies)


def writing(text: str):
    """Answers whose rows are this text and the end."""
    tokens = [*byte_tokenizer()(text)["input_ids"], END]
    row = {"token_ids": tokens, "logprobs": {"token_logprobs": [-0.5] * len(tokens)}, "finish_reason": "stop"}
    return lambda good: good | {"choices": [choice | row for choice in good["choices"]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": [65, 257]}, "token_ids are"),
        ({"logprobs": {"token_logprobs": [-0.5, float("nan")]}}, "a log-probability is nan"),
    ],
)
def test_ids_past_the_vocabulary_and_logprobs_that_are_no_numbers_are_no_answer(served, changes, message):
    fake = FakeEndpoint()
    engine = served(fake, patience=0.0)
    choice = {
        "index": 0,
        "token_ids": [65, 66],
        "logprobs": {"token_logprobs": [-0.5, -0.5]},
        "finish_reason": "length",
    }
    fake.turn({"choices": [choice | changes]})
    with pytest.raises(EngineUnavailable, match=message):
        asyncio.run(guided_search(engine, PROMPT, SearchParams(), Sampling(seed=1, stop_ids=(END,)), 2))


def test_an_answer_outside_its_schema_is_an_error_that_names_the_flag(served):
    fake = FakeEndpoint()
    engine = served(fake, patience=60.0)
    sampling = Sampling(seed=1, stop_ids=(END,), schema='{"type": "integer", "maximum": 5}')
    fake.turn(writing("7"))
    with pytest.raises(SchemaViolated, match=r"--structured-outputs-config.backend guidance"):
        asyncio.run(guided_search(engine, PROMPT, PARAMS, sampling, 16))
    assert len(fake.bodies) == 1 and engine.health().replicas[0]["up"]


def test_alternatives_are_read_by_their_ids(served):
    fake = FakeEndpoint()
    engine = served(fake)
    told = {"token_id:5": -0.1, "token_id:9": -3.0, "token_id:7": -2.0}
    choice = {"index": 0, "finish_reason": "length", "token_ids": [5], "logprobs": {"token_logprobs": [-0.1]}}
    choice["logprobs"]["top_logprobs"] = [told]
    fake.turn({"choices": [choice]})

    async def run():
        session = await engine.open(PROMPT, Sampling(seed=1, stop_ids=(END,), alternatives=2))
        return await session.extend([0], 1, 1)

    assert asyncio.run(run()).alternatives == [[[(5, -0.1), (7, -2.0)]]]
    assert fake.bodies[-1]["logprobs"] == 2 and fake.bodies[-1]["return_tokens_as_token_ids"] is True
