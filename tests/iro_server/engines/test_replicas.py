"""Servers of the model that fail, hang, refuse or are malformed, and how requests are shared among them."""

from __future__ import annotations

import asyncio
import pickle
import time
from dataclasses import replace

import pytest

from iro_server.decoding.search import guided_search
from iro_server.engines import remote
from iro_server.engines.base import Sampling
from iro_server.engines.endpoints import Endpoints, EngineRefused, EngineUnavailable
from iro_server.engines.replicas import STICKY_ROWS
from iro_server.telemetry.metrics import REGISTRY
from tests.iro_server.api.serving import wait_for
from tests.iro_server.engines.fake_endpoint import END, FakeEndpoint
from tests.iro_server.engines.quick_engine import (
    PARAMS,
    PROMPT,
    Quick,
    rounds,
    search,
    texts,
    within,
)


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


def test_prompts_are_as_long_as_every_replica_takes_and_one_of_another_model_is_named(served):
    fakes = FakeEndpoint(), FakeEndpoint(), FakeEndpoint()
    fakes[1].max_length = 100
    fakes[2].turn(500)  # is not asked what it takes
    assert served(*fakes).info.max_length == 100
    other = FakeEndpoint(model="other")
    with pytest.raises(ValueError, match=f"{other.url} serves no model 'bytes', only: other"):
        served(FakeEndpoint(), other, model="bytes")


@pytest.mark.parametrize("mode", ["garbled", "hang"])
def test_a_replica_that_answers_only_after_the_start_is_left_alone_until_it_serves_what_the_others_do(
    served, caplog, mode
):
    early, late = FakeEndpoint(), FakeEndpoint()
    late.turn(mode)
    engine = served(early, late)
    late.respond = lambda body: 400 if len(body["prompt"]) >= late.max_length else late.complete(body)
    late.max_length = 64
    late.turn("ok")
    wait_for(lambda: f"{late.url} takes 64 tokens (max_model_len), requests have up to 256" in caplog.text)

    async def search_long_prompts():
        await asyncio.gather(*(rounds(engine, [0], seed=seed, prompt=[72] * 100) for seed in range(6)))

    asyncio.run(search_long_prompts())
    assert engine.info.max_length == early.max_length and not late.bodies
    late.max_length, late.model = early.max_length, "other"
    wait_for(lambda: f"{late.url} serves no model 'bytes', only: other" in caplog.text)
    time.sleep(3 * engine.probe_every)
    assert caplog.text.count("serves no model") == 1  # not at each probe
    assert [replica["up"] for replica in engine.health().replicas] == [True, False]
    late.model = early.model
    wait_for(lambda: engine.health().replicas[1]["up"])
    asyncio.run(search_long_prompts())
    assert late.bodies


def test_a_replica_that_lists_no_models_at_the_start_is_used_once_it_does(served, monkeypatch, caplog):
    early, late = FakeEndpoint(), FakeEndpoint()
    with monkeypatch.context() as patch:
        patch.setattr(late.server.RequestHandlerClass, "do_GET", lambda self: self._answer(404, {}))
        late.turn(404)  # so that `served` does not wait for it
        engine = served(early, late)
        assert [replica["up"] for replica in engine.health().replicas] == [True, False]
        assert f"{late.url}/models is not there" in caplog.text
    late.turn("ok")
    wait_for(lambda: engine.health().replicas[1]["up"])


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


def test_without_patience_a_request_still_goes_to_another_replica(served):
    failing, well = FakeEndpoint(), FakeEndpoint()
    engine = served(failing, well, patience=0.0)
    failing.turn(500)
    for _ in range(2):
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
