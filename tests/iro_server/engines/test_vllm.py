"""The engine over vLLM against endpoints that can be told to misbehave (tests/e2e/test_vllm.py has real ones)."""

from __future__ import annotations

import asyncio
import pickle
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import AutoModel

from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines import remote
from iro_server.engines.base import Sampling
from iro_server.engines.embedding import Embedding
from iro_server.engines.endpoints import Endpoints, EngineRefused, EngineUnavailable, SchemaViolated, base_url
from iro_server.engines.replicas import STICKY_ROWS
from iro_server.engines.vllm import VLLMEngine
from iro_server.telemetry.metrics import REGISTRY
from tests.iro_server.api.byte_engine import byte_tokenizer
from tests.iro_server.api.serving import wait_for
from tests.iro_server.engines.fake_endpoint import END, FakeEndpoint, tokens_of, write_byte_model

PROMPT = [72, 105, 33]
SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=11, stop_ids=(END,), salt="whose")
PARAMS = SearchParams(beam_width=2, num_successors=3, chunk_length=4)


class Quick(VLLMEngine):
    probe_every, silence = 0.05, 0.3


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def served(model_dir):
    """Starts so many fake endpoints and an engine over them."""
    closing = []

    def start(*fakes: FakeEndpoint, patience: float = 5.0, **options):
        closing.extend(fakes)
        urls = tuple(fake.url for fake in fakes)
        engine = Quick(model_dir, Endpoints(urls, patience=patience, **options))
        closing.insert(0, engine)
        for fake in fakes:
            fake.bodies.clear()
        return engine

    yield start
    for each in closing:
        each.close()


async def rounds(engine, *parents, seed: int = 11):
    session = await engine.open(PROMPT, Sampling(seed=seed, stop_ids=(END,)))
    return [await session.extend(each, 2, 5) for each in parents]


def search(engine, seed: int = 11, max_tokens: int = 16):
    sampling = Sampling(seed=seed, stop_ids=(END,))
    return asyncio.run(guided_search(engine, PROMPT, PARAMS, sampling, max_tokens))


def texts(result) -> list[list[int]]:
    return [final.tokens for final in result.finals]


@contextmanager
def within(seconds: float):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


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


def test_the_key_is_sent_and_a_refused_one_is_said_at_once(served):
    fake = FakeEndpoint()
    engine = served(fake, key="secret", patience=60)
    search(engine)
    assert set(fake.keys) == {"Bearer secret"}
    fake.turn(401)
    with within(20), pytest.raises(EngineUnavailable, match="IRO_ENGINE_KEY"):
        search(engine)


def test_a_request_that_is_refused_as_wrong_is_not_tried_elsewhere(served):
    fakes = FakeEndpoint(), FakeEndpoint()
    engine = served(*fakes)
    for fake in fakes:
        fake.turn(400)
    with pytest.raises(EngineRefused, match="told to") as refused:
        search(engine)
    assert refused.value.reason == "told to" and str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
    assert sum(len(fake.bodies) for fake in fakes) == 1


GARBAGE = {
    "no JSON": b"<html>",
    "a list": [],
    "no choices": {"object": "text_completion"},
    "too few rows": lambda good: good | {"choices": good["choices"][1:]},
    "rows twice": lambda good: good | {"choices": [good["choices"][0]] * len(good["choices"])},
    "no ids": lambda good: good | {"choices": [each | {"token_ids": None} for each in good["choices"]]},
    "text for ids": lambda good: good | {"choices": [each | {"token_ids": ["a"]} for each in good["choices"]]},
    "cut short": lambda good: (
        good | {"choices": [each | {"token_ids": [65], "finish_reason": "abort"} for each in good["choices"]]}
    ),
    "logprobs missing": lambda good: (
        good | {"choices": [each | {"logprobs": {"token_logprobs": []}} for each in good["choices"]]}
    ),
}


FAILURES = {"drop": "drop", "500": 500, "503": 503, "429": 429, **GARBAGE}


@pytest.mark.parametrize("mode", FAILURES.values(), ids=FAILURES)
def test_a_replica_that_fails_in_mid_search_changes_nothing(served, mode):
    fakes = FakeEndpoint(), FakeEndpoint()
    engine = served(*fakes)
    expected = texts(search(engine))
    for fake in fakes:
        fake.turn(mode, after=2, times=1)
    with within(30):
        assert texts(search(engine)) == expected
    assert sum(fake.times == 0 for fake in fakes) >= 1


def test_a_replica_that_hangs_is_given_up_and_used_again_once_it_answers(served):
    fakes = FakeEndpoint(), FakeEndpoint()
    engine = served(*fakes)
    expected = texts(search(engine))
    fakes[0].turn("hang")
    with within(30):
        for _ in range(2):  # one of the two starts on it
            assert texts(search(engine)) == expected
    assert [replica["up"] for replica in engine.health().replicas] == [False, True]
    asked = len(fakes[0].bodies)
    assert texts(search(engine)) == expected
    assert len(fakes[0].bodies) == asked  # left alone
    fakes[0].turn("ok")
    deadline = time.monotonic() + 60
    while not all(replica["up"] for replica in engine.health().replicas):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for _ in range(2):
        search(engine)
    assert len(fakes[0].bodies) > asked


def test_an_answer_that_takes_too_long_is_sought_elsewhere_though_probes_are_answered(served):
    fakes = FakeEndpoint(), FakeEndpoint()
    engine = served(*fakes, timeout=0.3)
    expected = texts(search(engine))
    fakes[0].turn("hang", after=1)
    with within(30):
        for _ in range(2):
            fakes[0].after = 1
            assert texts(search(engine)) == expected


@pytest.mark.parametrize(("mode", "message"), [(500, "answered 500: told to"), ("garbled", "does not answer")])
def test_without_any_replica_a_request_fails_within_its_patience_and_later_ones_succeed_again(served, mode, message):
    fake = FakeEndpoint()
    engine = served(fake, patience=0.6)
    fake.turn(mode)
    with within(20), pytest.raises(EngineUnavailable, match=message):
        search(engine)
    assert 2 <= len(fake.bodies) <= 4  # at growing intervals
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            search(engine)
    assert not engine.health().replicas[0]["up"]  # after three requests
    fake.turn("ok")
    wait_for(lambda: engine.health().replicas[0]["up"])
    assert search(engine).finals


def test_a_request_that_a_server_always_fails_at_ends_alone(served):
    """Four of them, which leave the replica alone, repeat no request that it decodes."""
    fake, poison = FakeEndpoint(), [1, 2]
    engine = served(fake, patience=60.0)

    def respond(body):
        if body["prompt"][:2] == poison:
            return 500
        time.sleep(0.5)
        return fake.complete(body)

    fake.respond = respond

    async def ask(prompt: list[int]):
        return await guided_search(engine, prompt, PARAMS, Sampling(seed=11, stop_ids=(END,)), 16)

    async def all_at_once():
        return await asyncio.gather(ask(PROMPT), *(ask(poison) for _ in range(4)), return_exceptions=True)

    with within(30):
        sound, *failures = asyncio.run(all_at_once())
    sound_prompts = [tuple(body["prompt"]) for body in fake.bodies if body["prompt"][:2] != poison]
    assert sound.finals and len(set(sound_prompts)) == len(sound_prompts)
    assert all("while it answers other requests" in str(failure) for failure in failures)


def test_a_hanging_server_costs_a_request_one_timeout(served):
    fake = FakeEndpoint()
    engine = served(fake, timeout=1.0, patience=60.0)
    engine.replicas.timing = replace(engine.replicas.timing, silence=60.0)
    fake.turn("hang")
    with within(1.9), pytest.raises(EngineUnavailable, match="took longer than 1 s"):
        search(engine)
    assert len(fake.bodies) == 1


@pytest.mark.parametrize("status", [401, 404])
def test_a_gateway_without_a_health_route_is_no_dead_server(served, monkeypatch, status):
    fake = FakeEndpoint()
    engine = served(fake, patience=1.0)
    handler = fake.server.RequestHandlerClass
    monkeypatch.setattr(handler, "do_GET", lambda self: self._answer(status, {}))

    def slow(body):
        time.sleep(2.0)  # longer than the silence of a replica that is the last
        return fake.complete(body)

    fake.respond = slow
    assert search(engine, max_tokens=4).finals and len(fake.bodies) == 1


@pytest.mark.parametrize("key", ["sk-sec\rret", "schlüssel", "sk-secret\x00"])
def test_a_key_that_no_header_takes_is_refused_without_quoting_it(key):
    with pytest.raises(ValueError, match=r"^IRO_ENGINE_KEY holds a control or non-ASCII character") as refused:
        Endpoints(("http://host/v1",), key=key)
    assert key[:5] not in str(refused.value)


def test_a_key_is_sent_without_the_line_end_of_its_file(served):
    fake = FakeEndpoint()
    search(served(fake, key="secret\r\n"))
    assert set(fake.keys) == {"Bearer secret"}


def test_a_malformed_header_is_not_quoted(served, caplog):
    fake = FakeEndpoint()
    engine = served(fake, patience=60.0)
    engine.replicas.client.headers["Authorization"] = "Bearer sk-secret\r"
    with within(10), pytest.raises(EngineUnavailable, match="headers are malformed") as failure:
        search(engine)
    assert "sk-secret" not in f"{failure.value} {failure.value.__cause__}" + caplog.text


def test_waiting_for_an_engine_is_logged_at_once(model_dir, monkeypatch, caplog):
    monkeypatch.setattr(remote, "NOTICE", 0.05)
    monkeypatch.setattr(remote, "START", 0.5)
    with pytest.raises(EngineUnavailable):
        Quick(model_dir, Endpoints(("http://127.0.0.1:9/v1",)))
    assert "waiting up to 0 s for an answer of http://127.0.0.1:9/v1" in caplog.text


def test_searches_spread_over_replicas_and_each_stays_on_its_own(served):
    fakes = FakeEndpoint(), FakeEndpoint()
    engine = served(*fakes)
    for _ in range(6):
        search(engine)
    by_fake = [{tuple(body["prompt"][:3]) for body in fake.bodies} for fake in fakes]
    assert all(by_fake)

    async def one_search() -> list[int]:
        before = [len(fake.bodies) for fake in fakes]
        await guided_search(engine, PROMPT, PARAMS, Sampling(seed=5, stop_ids=(END,)), 16)
        return sorted(len(fake.bodies) - n for fake, n in zip(fakes, before, strict=True))

    assert asyncio.run(one_search())[0] == 0
    report = engine.health().replicas
    assert all(replica["cached_tokens"] > 0 and replica["prompt_tokens"] > 0 for replica in report)
    for name in ("prompt_tokens", "cached_tokens"):
        counted = REGISTRY.get_sample_value(f"iro_engine_{name}_total")
        assert counted is not None and counted >= sum(replica[name] for replica in report)


def test_a_session_leaves_a_replica_that_is_much_more_loaded(served):
    fakes = FakeEndpoint(), FakeEndpoint()
    engine = served(*fakes)
    busy, idle = engine.replicas.all
    assert engine.replicas._choose(busy, ()) is busy
    busy.rows = STICKY_ROWS - 1
    assert engine.replicas._choose(busy, ()) is busy
    busy.rows = STICKY_ROWS
    assert engine.replicas._choose(busy, ()) is idle


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
