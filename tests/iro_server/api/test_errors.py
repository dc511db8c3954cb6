from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from iro_server.access.rates import RateLimitExceeded
from iro_server.api import errors
from iro_server.api.registry import ModelMismatch, ModelNotFound, ModelUnreadable
from iro_server.concurrency.admission import RequestTooLarge, TooManyWaiting
from iro_server.concurrency.deadlines import DeadlineExceeded, ServerStopping
from iro_server.concurrency.fair_queue import QueueFull
from iro_server.engines.endpoints import EngineRefused, EngineUnavailable, SchemaViolated


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v1/nothing", 404, "unknown_url"), ("PUT", "/v1/models", 405, "method_not_allowed")],
)
def test_unknown_routes_answer_in_the_envelope(client, method, path, status, code):
    answer = httpx.request(method, str(client.base_url.copy_with(path=path)))
    assert answer.status_code == status
    assert answer.json()["error"] | {"message": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": None,
        "code": code,
    }


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe"])
def test_a_body_that_is_no_request_is_a_bad_request(client, body):
    answer = httpx.post(
        f"{client.base_url}chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] and answer.json()["error"]["code"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"search": {"values": {"bytes": 1.0}}}, "search.values"),
        ("chat/completions", {"search": {"strength": 0.5}}, "search.strength"),
        ("chat/completions", {"search": {"pick": "grader"}}, "search.pick"),
        ("completions", {"prompt": [999999]}, "prompt"),
        ("completions", {"prompt": ""}, "prompt"),
    ],
)
def test_a_refusal_names_its_field_and_has_a_code(client, path, fields, param):
    prompt = {"prompt": "hi"} if path == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(f"{client.base_url}{path}", json={"model": "bytes", **prompt, **fields})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] and error["param"].startswith(param), error


def test_a_body_over_the_limit_is_refused_with_or_without_its_length(client):
    url = f"{client.base_url}chat/completions"
    for content in (b"x" * 200_000, (b"x" * 1000 for _ in range(200))):
        answer = httpx.post(url, content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_health_names_the_model_and_counts_jobs(client):
    health = httpx.get(f"{client.base_url}health").json()
    assert health["status"] == "ok" and health["model"] == "bytes" and set(health["jobs"]) == {"queued", "running"}


def test_errors_say_what_would_do(client):
    def message(path: str, **kwargs) -> str:
        return httpx.post(f"{client.base_url}{path}", **kwargs).json()["error"]["message"]

    job = {"model": "bytes", "training_file": "file-1"}
    assert "'type': 'reinforcement'" in message("fine_tuning/jobs", json=job)
    assert message("fine_tuning/jobs") == "The request has no body; send one as JSON."
    chat = {"model": "ft:bytes:iro::12345678:ckpt-step-9", "messages": [{"role": "user", "content": "hi"}]}
    assert "GET /v1/fine_tuning/jobs/{id}/checkpoints" in message("chat/completions", json=chat)
    grader = {"grader": {"type": "nonsense", "name": "x"}}
    said = message("fine_tuning/alpha/graders/validate", json=grader)
    assert said.startswith("grader.type: there is no grader of type 'nonsense', only 'string_check'")


def test_a_body_that_is_not_read_as_an_object_says_what_to_send(client):
    def message(content: bytes, kind: str) -> str:
        return httpx.post(url, content=content, headers={"content-type": kind}).json()["error"]["message"]

    url = f"{client.base_url}chat/completions"
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
        assert message(b'{"model": "bytes"}', kind).endswith("the header Content-Type: application/json.")
    assert message(b"[1]", "application/json") == "The body must be a JSON object."
    assert message(b'"text"', "application/json") == "The body must be a JSON object."


def test_a_path_without_its_version_names_the_one_with_it(client):
    def message(path: str) -> str:
        return httpx.post(str(client.base_url.copy_with(path=path))).json()["error"]["message"]

    call = "Unknown request URL: POST /chat/completions"
    assert message("/chat/completions") == f"{call}; did you mean /v1/chat/completions?"
    assert message("/chat/nothing") == "Unknown request URL: POST /chat/nothing"


def test_an_unknown_field_of_a_search_names_the_one_that_is_like_it(client):
    chat = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}], "search": {"row": 4}}
    message = httpx.post(f"{client.base_url}chat/completions", json=chat).json()["error"]["message"]
    assert message == "Unrecognized request argument supplied: search.row. Did you mean rows?"


def test_a_flat_response_format_is_told_where_its_fields_go(client):
    flat = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}
    chat = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}], "response_format": flat}
    message = httpx.post(f"{client.base_url}chat/completions", json=chat).json()["error"]["message"]
    assert message.startswith("Invalid 'response_format': name, schema: these fields go under json_schema")


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_null_in_place_of_what_is_required_is_missing(client, field):
    chat = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}], field: None}
    error = httpx.post(f"{client.base_url}chat/completions", json=chat).json()["error"]
    assert (error["message"], error["param"]) == (f"Missing required parameter: '{field}'.", field)
    assert error["code"] == "missing_required_parameter"


def test_a_message_without_content_lacks_its_content(client):
    chat = {"model": "bytes", "messages": [{"role": "user"}]}
    error = httpx.post(f"{client.base_url}chat/completions", json=chat).json()["error"]
    assert error["param"] == "messages.0.content"
    assert error["message"] == "Missing required parameter: 'messages.0.content'."


def test_control_characters_of_a_request_are_spelled_in_its_error(client):
    chat = {"model": "a\x1b[2J\x9b\u2028\nb", "messages": [{"role": "user", "content": "hi"}]}
    message = httpx.post(f"{client.base_url}chat/completions", json=chat).json()["error"]["message"]
    assert r"a\x1b[2J\x9b\u2028" in message and "\x1b" not in message and "\x9b" not in message


def test_a_stream_is_for_no_cache_and_no_buffer(client):
    body = {"model": "bytes", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 2}
    headers = httpx.post(f"{client.base_url}chat/completions", json=body).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")


def test_a_stream_that_breaks_off_says_no_more_than_a_whole_answer(client, monkeypatch):
    async def fail(*_):
        raise RuntimeError("no route to http://10.0.0.1")

    monkeypatch.setattr("tests.iro_server.api.byte_engine.ByteSession.extend", fail)
    body = {"model": "bytes", "prompt": "hi", "max_tokens": 2}
    answers = [httpx.post(f"{client.base_url}completions", json=body | extra) for extra in ({}, {"stream": True})]
    assert answers[0].json()["error"]["message"] == "The server had an error: RuntimeError"
    assert f"data: {answers[0].text}\n" in answers[1].text


@pytest.mark.parametrize(
    ("error", "status", "code", "header"),
    [
        (DeadlineExceeded(), 504, "deadline_exceeded", ("x-should-retry", "false")),
        (EngineRefused("http://10.0.0.1", "no top_k"), 400, "engine_refused", None),
        (EngineUnavailable("http://10.0.0.1"), 503, "engine_unavailable", ("retry-after", "5")),
        (SchemaViolated("http://10.0.0.1"), 502, "schema_violated", ("x-should-retry", "false")),
        (ModelMismatch("other weights"), 400, "model_mismatch", None),
        (ModelNotFound("no model"), 404, "model_not_found", None),
        (ModelUnreadable("damaged"), 500, "model_unreadable", None),
        (QueueFull("9 wait"), 503, "overloaded", ("retry-after", "5")),
        (RateLimitExceeded("too many", "requests", 7), 429, "rate_limit_exceeded", ("retry-after", "7")),
        (RateLimitExceeded("too large", "tokens", None), 429, "rate_limit_exceeded", ("x-should-retry", "false")),
        (RequestTooLarge("1001 tokens"), 400, "too_many_tokens", None),
        (ServerStopping(), 503, "server_stopping", ("retry-after", "2")),
        (TooManyWaiting("2 wait"), 503, "overloaded", ("retry-after", "2")),
    ],
)
def test_exceptions_of_the_domain_have_their_response(
    error: Exception, status: int, code: str, header: tuple[str, str] | None
) -> None:
    app = FastAPI()
    errors.install(app)

    @app.get("/")
    def fail() -> None:
        raise error

    response = TestClient(app).get("/")
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert header is None or response.headers[header[0]] == header[1]
    assert "10.0.0.1" not in response.text
