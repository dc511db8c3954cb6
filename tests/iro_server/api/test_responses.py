"""/v1/responses by the official client: the same answers as chat, stored, continued, streamed, and whose they are."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from iro_server.store import keys
from iro_server.store.database import open_database
from iro_server.store.sweep import sweep
from iro_server.store.tables import Response
from tests.contract.strict import strictly
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import aligned, serving, settings_for, wait_for

TYPES = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done"]
TYPES += ["content_part.done", "output_item.done", "completed"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return settings_for(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def client(settings):
    with serving(settings, ByteEngine()) as client:
        yield client


def refusal(call) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        call()
    return error.value


def chat_text(client, model: str, messages: list[dict[str, str]], **options) -> str:
    return client.chat.completions.create(model=model, messages=messages, **options).choices[0].message.content


def test_a_response_is_the_chat_answer_of_its_messages(client, settings):
    for model in ("bytes", aligned(settings, "loves-z")):
        response = client.responses.create(
            model=model, input="hi", instructions="be brief", max_output_tokens=9, extra_body={"seed": 3}
        )
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
        assert response.output_text == chat_text(client, model, messages, max_tokens=9, seed=3)
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        strictly(client.responses.retrieve(response.id))
        assert client.responses.retrieve(response.id).to_dict() == response.to_dict()


@pytest.mark.parametrize("temperature", [0, 0.0005, 1.5])
def test_a_response_shows_the_temperature_that_was_asked_for(client, settings, temperature):
    model = aligned(settings, f"at-{temperature}")  # of several rows: at 0 it searches at its job's temperature
    response = client.responses.create(model=model, input="hi", max_output_tokens=2, temperature=temperature)
    assert response.temperature == client.responses.retrieve(response.id).temperature == temperature


def test_a_response_goes_on_from_the_one_before(client):
    first = client.responses.create(model="bytes", input="hi", temperature=0, instructions="once")
    parts = [{"type": "input_text", "text": "and "}, {"type": "input_text", "text": "then?"}]
    second = client.responses.create(
        model="bytes", input=[{"role": "user", "content": parts}], previous_response_id=first.id, temperature=0
    )
    third = client.responses.create(model="bytes", input="more", previous_response_id=second.id, temperature=0)
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": first.output_text}]
    said += [{"role": "user", "content": "and then?"}, {"role": "assistant", "content": second.output_text}]
    chat = client.chat.completions.create(
        model="bytes", messages=[*said, {"role": "user", "content": "more"}], temperature=0
    )  # without the first one's instructions
    assert third.usage.input_tokens == chat.usage.prompt_tokens
    assert third.output_text == chat.choices[0].message.content
    sent_back = client.responses.create(
        model="bytes", temperature=0, input=[{"role": "user", "content": "hi"}, *first.output, *first.output]
    )
    assert sent_back.usage.input_tokens > first.usage.input_tokens
    client.responses.delete(first.id)
    gone = refusal(lambda: client.responses.create(model="bytes", input="x", previous_response_id=third.id))
    assert (gone.status_code, gone.param, gone.code) == (404, "previous_response_id", "response_not_found")


def test_the_stream_has_its_events_in_order_and_ends_with_what_is_stored(client):
    events = list(client.responses.create(model="bytes", input="hi", temperature=0, stream=True))
    for event in events:
        strictly(event)
    kinds = [event.type.removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == TYPES and kinds.count("output_text.delta") > 1
    assert [event.sequence_number for event in events] == [*range(len(events))]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    final = events[-1].response
    assert text == final.output_text == client.responses.create(model="bytes", input="hi", temperature=0).output_text
    assert client.responses.retrieve(final.id).to_dict() == final.to_dict()
    with client.responses.stream(model="bytes", input="hi", max_output_tokens=3) as stream:
        helper = [event.type for event in stream]
        assert helper[-1] == "response.incomplete"


def test_input_items_are_listed_in_pages(client):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    response = client.responses.create(model="bytes", input=turns, max_output_tokens=2)
    items = list(client.responses.input_items.list(response.id, order="asc", limit=2))
    assert [(item.role, item.content[0].text) for item in items] == [(t["role"], t["content"]) for t in turns]
    newest = client.responses.input_items.list(response.id, limit=1)
    strictly(newest)
    assert newest.data[0].content[0].text == "c" and newest.has_more


def test_what_is_not_stored_cannot_be_retrieved_and_what_expires_is_removed(tmp_path, database_url):
    settings = settings_for(tmp_path, database_url=database_url, response_seconds=1, project_responses=2)
    sessions = open_database(settings)
    with serving(settings, ByteEngine()) as client:

        def create(**options):
            return client.responses.create(model="bytes", input="\0 \ud83d", max_output_tokens=2, **options)

        with pytest.raises(UnicodeEncodeError):
            create()  # which the client itself cannot send
        unstored = client.responses.create(model="bytes", input="a\0b", max_output_tokens=2, store=False)
        assert refusal(lambda: client.responses.retrieve(unstored.id)).status_code == 404
        brief = client.responses.create(model="bytes", input="a\0b", max_output_tokens=2)
        wait_for(lambda: not is_there(client, brief.id))
    sweep(settings, sessions)
    with sessions() as session:
        assert session.query(Response).count() == 0


def is_there(client, id: str) -> bool:
    try:
        client.responses.retrieve(id)
    except openai.NotFoundError:
        return False
    return True


def test_a_response_belongs_to_its_project_and_counts_against_its_quota(tmp_path):
    settings = settings_for(tmp_path, project_responses=1)
    sessions = open_database(settings)
    secrets = [keys.create(sessions, name, name, scopes=["read", "generate", "train"])[1] for name in ("us", "them")]
    reader = keys.create(sessions, "reader", "us", scopes=["read"])[1]
    with serving(settings, ByteEngine()) as client:
        ours, theirs = (client.with_options(api_key=secret) for secret in secrets)
        made = ours.responses.create(model="bytes", input="a", max_output_tokens=2)
        calls = [
            lambda c: c.responses.retrieve(made.id),
            lambda c: c.responses.input_items.list(made.id),
            lambda c: c.responses.create(model="bytes", input="a", previous_response_id=made.id),
            lambda c: c.responses.delete(made.id),
        ]
        for call in calls:
            assert refusal(lambda call=call: call(theirs)).status_code == 404
        full = refusal(lambda: ours.responses.create(model="bytes", input="a"))
        assert full.code == "insufficient_quota" and "store" in full.message
        ours.responses.create(model="bytes", input="a", max_output_tokens=2, store=False)
        forbidden = refusal(lambda: client.with_options(api_key=reader).responses.create(model="bytes", input="a"))
        assert forbidden.status_code == 403


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("tools", [{"type": "web_search"}], "tools.0.type"),
        ("background", True, "background"),
        ("conversation", "conv_1", "conversation"),
        ("input", [{"type": "computer_call", "call_id": "a"}], "input.0.type"),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}], "input.0.content"),
        ("temperature", 3, "temperature"),
        ("max_output_tokens", 100_000, "input"),
        ("text", {"format": {"type": "no such"}}, "text.format"),
        ("model", "gpt-4o", "model"),
    ],
)
def test_a_mistake_is_refused_where_it_stands(client, field, value, param):
    body = {"model": "bytes", "input": "a"} | {field: value}
    answer = httpx.post(f"{client.base_url}responses", json=body)
    assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    ("item", "advice"),
    [
        ({"type": "item_reference", "id": "msg_1"}, "previous_response_id"),
        ({"type": "reasoning", "id": "rs_1", "summary": []}, "leave them out"),
        ({"type": "computer_call", "call_id": "a"}, "function_call_output"),
    ],
)
def test_an_item_of_another_type_is_refused_by_its_name(client, item, advice):
    refused = refusal(lambda: client.responses.create(model="bytes", input=[item]))
    assert refused.param == "input.0.type" and item["type"] in refused.message and advice in refused.message


def test_a_response_shows_the_top_p_of_its_request(client):
    assert client.responses.create(model="bytes", input="a", top_p=0, max_output_tokens=2).top_p == 0


def test_a_developers_message_is_the_systems(tmp_path):
    engine = ByteEngine()
    engine.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with serving(settings_for(tmp_path), engine) as client:
        instructed = client.responses.create(model="bytes", instructions="b", input="a", max_output_tokens=2)
        items = [{"role": "developer", "content": "b"}, {"role": "user", "content": "a"}]
        sent = client.responses.create(model="bytes", input=items, max_output_tokens=2)
    assert sent.usage.input_tokens == instructed.usage.input_tokens == len("system: b\nuser: a\n")


def test_a_response_is_held_to_its_text_format(client):
    schema = {"type": "object", "properties": {"mood": {"enum": ["fine", "bad"]}}, "required": ["mood"]}
    schema["additionalProperties"] = False
    text = {"format": {"type": "json_schema", "name": "mood", "strict": True, "schema": schema}}
    answer = client.responses.create(model="bytes", input="hi", text=text, max_output_tokens=60)
    assert json.loads(answer.output_text)["mood"] in ("fine", "bad")
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="bytes", input="hi", text={"format": text["format"] | {"schema": {"not": {}}}})
    assert refused.value.param == "text.format"


def test_a_response_is_retrieved_with_stream_false(client):
    response = client.responses.create(model="bytes", input="hi", max_output_tokens=3)
    assert client.responses.retrieve(response.id, stream=False).id == response.id
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.retrieve(response.id, stream=True)
    assert refused.value.param == "stream"
