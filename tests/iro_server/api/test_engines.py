"""The server over an engine that is reached by HTTP: what its users see of that."""

from __future__ import annotations

import json
import os

import httpx
import openai
import pytest

from iro_server.engines.base import cache_salt
from iro_server.engines.endpoints import KEY_VARIABLE, Endpoints
from iro_server.engines.text import TextEngine
from iro_server.engines.vllm import VLLMEngine
from iro_server.store.database import find, open_database
from iro_server.store.tables import Job
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, serving, settings_for, start_job, wait_for
from tests.iro_server.engines.fake_endpoint import FakeEndpoint, write_byte_model


class Quick(VLLMEngine):
    probe_every, silence = 0.05, 0.3


@pytest.fixture
def fake():
    fake = FakeEndpoint()
    yield fake
    fake.close()


@pytest.fixture
def settings(tmp_path, fake):
    model_dir = write_byte_model(tmp_path / "model")
    return settings_for(tmp_path / "data", model_dir=model_dir, engine_urls=[fake.url], engine_key="secret")


@pytest.fixture
def client(settings, fake):
    endpoints = Endpoints((fake.url,), patience=0.3, key="secret")
    with Quick(settings.model_dir, endpoints, "bytes") as engine, serving(settings, engine) as client:
        fake.bodies.clear()
        yield client


def say(client, **options):
    return client.completions.create(model="bytes", prompt="Hi", seed=3, max_tokens=12, **options)


def health(client):
    return httpx.get(f"{client.base_url}health")


def test_completions_come_from_the_engine_under_the_projects_salt(client, fake):
    searched = say(client, n=2, extra_body={"search": {"beam_width": 2, "num_successors": 2, "chunk_length": 4}})
    assert len(searched.choices) == 2 and searched.usage.rounds > 1
    one, same = ("".join(chunk.choices[0].text for chunk in say(client, stream=True)) for _ in range(2))
    assert one == same != ""
    assert {body["cache_salt"] for body in fake.bodies} == {cache_salt("default")}


@pytest.mark.parametrize("search", [{}, {"beam_width": 2, "num_successors": 2, "chunk_length": 4}])
def test_a_greedy_search_asks_for_one_row(client, fake, search):
    """vLLM refuses ``n`` above 1 at temperature 0."""
    answer = say(client, n=2, temperature=0, extra_body={"search": search})
    assert answer.choices[0].text == answer.choices[1].text
    assert fake.bodies and {body["n"] for body in fake.bodies} == {1}


def test_an_engine_that_is_away_is_a_503_and_health_says_so(client, fake):
    assert health(client).json()["engines"][0]["up"]
    fake.turn(500)
    with pytest.raises(openai.InternalServerError) as refused:
        say(client)
    assert refused.value.status_code == 503 and refused.value.code == "engine_unavailable"
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert fake.url not in refused.value.message
    wait_for(lambda: health(client).status_code == 503)  # a replica is down after some failures, of requests or probes
    assert health(client).json()["status"] == "unavailable"
    for path in ("health/ready", "health/live", "files"):  # what needs no engine is served
        assert httpx.get(f"{client.base_url}{path}").status_code == 200
    with pytest.raises(openai.APIError, match="cannot be reached now"):
        list(say(client, stream=True))
    fake.turn("ok")
    wait_for(lambda: health(client).status_code == 200)
    assert say(client).choices[0].text


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_the_engine_refuses_is_a_400_with_its_reason_and_no_address(client, fake, status):
    fake.turn(status)
    with pytest.raises(openai.BadRequestError) as refused:
        say(client)
    assert refused.value.code == "engine_refused" and "told to" in refused.value.message
    with pytest.raises(openai.APIError) as streamed:
        list(say(client, stream=True))
    assert streamed.value.body == refused.value.body
    assert fake.url not in str(refused.value.body)


def test_jobs_are_told_where_the_model_is_but_not_the_key(client, fake, settings, monkeypatch):
    job_id = start_job(client, GRADER, max_tokens=4)
    with open_database(settings)() as session:
        config = find(session, Job, job_id).config
    assert config["engine_urls"] == [fake.url] and config["engine_kind"] == "vllm"
    assert "secret" not in json.dumps(config) and "secret" not in settings.model_dump_json()
    assert KEY_VARIABLE not in os.environ


def test_jobs_keep_the_precision_of_the_server_that_created_them(tmp_path):
    precise = settings_for(tmp_path / "data", engine_precision="bfloat16")
    with serving(precise, ByteEngine()) as client:
        job_id = start_job(client, GRADER, max_tokens=4)
        with open_database(precise)() as session:
            config = find(session, Job, job_id).config
    assert config["engine_precision"] == "bfloat16" and "engine_urls" not in config


def test_log_probabilities_of_a_text_endpoint_are_refused(settings, fake):
    with TextEngine(settings.model_dir, Endpoints((fake.url,)), "bytes") as engine, serving(settings, engine) as client:
        assert say(client).choices[0].text
        with pytest.raises(openai.BadRequestError, match="log-probabilities") as refused:
            say(client, logprobs=1)
        assert refused.value.param == "logprobs"
        with pytest.raises(openai.BadRequestError, match="log-probabilities"):
            client.chat.completions.create(
                model="bytes", messages=[{"role": "user", "content": "Hi"}], logprobs=True, max_tokens=2
            )
