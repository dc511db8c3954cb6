"""Answers held to a JSON schema, over the API."""

from __future__ import annotations

import json
import threading
from typing import Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.iro_server.api.serving import GRADER, conforms, ended, upload

HI = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["fine", "bad"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["mood", "stars"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "review", "strict": True, "schema": SCHEMA}}
SEARCH = {"beam_width": 2, "num_successors": 4, "chunk_length": 3}


def chat(client, **options):
    return client.chat.completions.create(**({"model": "bytes", "messages": HI, "response_format": FORMAT} | options))


class Review(BaseModel):
    mood: Literal["fine", "bad"]
    stars: int


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"n": 3}, {"extra_body": {"search": SEARCH}, "n": 4}])
@pytest.mark.parametrize("aligned", [False, True])
def test_every_answer_fits_the_schema(client, job, options, aligned):
    answer = conforms(chat(client, model=job.fine_tuned_model if aligned else "bytes", seed=1, **options))
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
        assert choice.finish_reason == "stop"


def test_a_stream_says_what_the_whole_answer_says(client, job):
    for model in ("bytes", job.fine_tuned_model):
        whole = chat(client, model=model, seed=3).choices[0].message.content
        deltas = [chunk.choices[0].delta.content or "" for chunk in chat(client, model=model, seed=3, stream=True)]
        assert "".join(deltas) == whole and len([delta for delta in deltas if delta]) > 2


def test_a_json_object_is_an_object(client):
    """The script, "héllo …", is none; within a string it may be said. Most of these few tokens are a beginning."""
    answer = chat(client, response_format={"type": "json_object"}, seed=1, max_tokens=12)
    (choice,) = answer.choices
    assert choice.message.content.lstrip().startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


def test_a_cut_answer_says_length(client):
    (choice,) = chat(client, max_tokens=5).choices
    assert choice.finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice.message.content)


def test_a_client_parses_into_its_own_type(client):
    answer = client.chat.completions.parse(model="bytes", messages=HI, response_format=Review, seed=2, max_tokens=100)
    review = answer.choices[0].message.parsed
    assert isinstance(review, Review) and review.mood in ("fine", "bad")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="bytes", messages=HI, response_format=Review, max_tokens=3)


def test_log_probabilities_are_those_of_what_the_schema_leaves(client):
    """Two names, of which the first letter decides, whatever the model prefers: nothing else is among alternatives."""
    content = chat(client, seed=1, logprobs=True, top_logprobs=20).choices[0].logprobs.content
    place = next(i for i, entry in enumerate(content) if entry.token in "fb" and content[i - 1].token == '"' and i > 6)
    assert {alternative.token for alternative in content[place].top_logprobs} == {"f", "b"}
    assert content[place + 1].logprob == pytest.approx(0, abs=1e-6)


def test_a_model_answers_in_its_jobs_format_unless_asked_otherwise(client):
    reinforcement = {"grader": GRADER, "response_format": FORMAT}
    method = {"type": "reinforcement", "reinforcement": reinforcement}
    job = client.fine_tuning.jobs.create(model="bytes", training_file=upload(client), method=method)
    model = ended(client, job.id).fine_tuned_model
    ask = client.chat.completions.create
    jsonschema.validate(json.loads(ask(model=model, messages=HI, max_tokens=99).choices[0].message.content), SCHEMA)
    for other in ({"type": "text"}, named({"const": "z"})):
        text = ask(model=model, messages=HI, max_tokens=9, response_format=other).choices[0].message.content
        assert not text.startswith("{")
    texts = client.completions.create
    jsonschema.validate(json.loads(texts(model=model, prompt="hi", max_tokens=99).choices[0].text), SCHEMA)
    free = texts(model=model, prompt="hi", max_tokens=9, extra_body={"response_format": {"type": "text"}})
    assert not free.choices[0].text.startswith("{")


def test_a_text_is_continued_in_the_format_that_is_asked_for(client):
    ask = {"model": "bytes", "prompt": ["hi", "ho"], "n": 2, "max_tokens": 99, "seed": 1}
    whole = client.completions.create(**ask, extra_body={"response_format": FORMAT})
    for choice in whole.choices:
        jsonschema.validate(json.loads(choice.text), SCHEMA)
    streamed = ["", "", "", ""]
    for chunk in client.completions.create(**ask, stream=True, extra_body={"response_format": FORMAT}):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in whole.choices]
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(**ask, extra_body={"response_format": named({"not": {}})})
    assert refusal.value.param == "response_format"


def named(schema):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def references(count):
    names = [f"d{i}" for i in range(count)]
    definitions = {
        name: {
            "type": "object",
            "properties": {key: {"$ref": f"#/$defs/{names[(i * 7 + j) % count]}"} for j, key in enumerate("abc")},
        }
        for i, name in enumerate(names)
    }
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


HOSTILE = {
    "200 references": references(200),
    "mutual recursion": {
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
        "$ref": "#/$defs/a",
    },
    "a loop": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "many properties": {"type": "object", "properties": {f"p{i}": {} for i in range(4000)}},
    "a long enum": {"enum": [f"value {i}" for i in range(4000)]},
    "1,000 properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}},
    "a large pattern": {"type": "string", "pattern": "^(a|aa|aaa)*(b|c|[a-z]{1,500}){1,500}$"},
    "nested repeats": {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
    "many items": {"type": "array", "minItems": 50_000, "items": {"type": "array", "maxItems": 10**5, "items": {}}},
    "crossed alternatives": {
        "allOf": [
            {"anyOf": [{"type": "object", "properties": {f"a{i}{j}": {"type": "string"}}} for j in range(6)]}
            for i in range(6)
        ]
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_is_answered_or_refused(client, name):
    body = {"model": "bytes", "messages": HI, "response_format": named(HOSTILE[name]), "max_tokens": 40}
    answer = httpx.post(f"{client.base_url}chat/completions", json=body, timeout=60)
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] == "response_format"


def test_hostile_schemas_leave_the_server_to_others(client):
    """While they are compiled, plain chats are answered."""
    bodies = [
        {"model": "bytes", "messages": HI, "response_format": named(s), "max_tokens": 20} for s in HOSTILE.values()
    ]
    threads = [
        threading.Thread(
            target=httpx.post, args=(f"{client.base_url}chat/completions",), kwargs={"json": body, "timeout": 60}
        )
        for body in bodies
    ]
    for thread in threads:
        thread.start()
    for _ in range(10):
        assert client.chat.completions.create(model="bytes", messages=HI, max_tokens=4).choices
    for thread in threads:
        thread.join()
