"""Tools of /v1/responses: calls are items of the output, streamed or not, and their results go back to the model."""

from __future__ import annotations

import json

import openai
import pytest

from tests.contract.strict import strictly
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for
from tests.iro_server.api.test_tools import RESPONSE_TOOLS as TOOLS
from tests.iro_server.api.test_tools import SAYS
from tests.iro_server.api.test_tools import TOOLS as CHAT_TOOLS


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """A server whose model calls both tools."""
    engine = ByteEngine(script=SAYS, noise=0.0, length=4096)
    with serving(settings_for(tmp_path_factory.mktemp("data")), engine) as client:
        yield client


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A server whose model says something else."""
    with serving(settings_for(tmp_path_factory.mktemp("data")), ByteEngine(length=4096)) as client:
        yield client


def respond(client, **options):
    asked = {"model": "bytes", "input": "hi", "tools": TOOLS, "max_output_tokens": 200, "extra_body": {"seed": 1}}
    return client.responses.create(**(asked | options))


def calls(response):
    return [(item.name, json.loads(item.arguments)) for item in response.output if item.type == "function_call"]


def test_calls_are_items_of_the_output_after_the_message(caller):
    response = strictly(respond(caller))
    assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
    assert response.output_text == "I look." and response.status == "completed"
    assert calls(response) == [("get_weather", {"city": "Oslo"}), ("get_time", {})]
    assert response.tools[0].name == "get_weather" and strictly(caller.responses.retrieve(response.id)) == response
    assert len(calls(respond(caller, parallel_tool_calls=False))) == 1
    assert calls(respond(caller, tool_choice="none")) == []


def test_a_stream_has_the_events_of_the_whole_response(caller):
    events = [strictly(event) for event in respond(caller, stream=True)]
    assert [event.sequence_number for event in events] == [*range(len(events))]
    complete = events[-1].response
    assert events[-1].type == "response.completed" and calls(complete) == calls(respond(caller))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == complete.output_text == "I look."
    written = {event.item_id: event.arguments for event in events if event.type.endswith("arguments.done")}
    assert written == {item.id: item.arguments for item in complete.output[1:]}
    for type in ("added", "done"):
        places = [event.output_index for event in events if event.type == f"response.output_item.{type}"]
        assert places == [0, 1, 2]
    with caller.responses.stream(model="bytes", input="hi", tools=TOOLS) as stream:  # the client puts it together
        assert [item.type for item in stream.get_final_response().output] == [item.type for item in complete.output]


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
    ],
)
def test_a_required_call_is_all_there_is(client, choice):
    response = strictly(respond(client, tool_choice=choice, extra_body={"seed": 3}))
    ((name, arguments),) = calls(response)
    assert len(response.output) == 1 and (name == "get_time" or arguments["city"] in ("Oslo", "Rome"))
    events = list(respond(client, tool_choice=choice, extra_body={"seed": 3}, stream=True))
    assert calls(events[-1].response) == calls(response)
    assert not [event for event in events if event.type.startswith(("response.output_text", "response.content_part"))]


def test_a_required_call_that_is_cut_is_incomplete(client):
    options = {"tool_choice": "required", "max_output_tokens": 40, "extra_body": {"seed": 3}}
    response = strictly(respond(client, **options))
    assert response.status == "incomplete" and [item.status for item in response.output] == ["incomplete"]
    with pytest.raises(ValueError):
        json.loads(response.output[0].arguments)
    items = [event.item for event in respond(client, **options, stream=True) if event.type.endswith("item.done")]
    assert [item.status for item in items] == ["incomplete"]


def test_an_answer_that_is_cut_after_a_call_has_a_complete_one(caller):
    """Of the second call, which is cut, nothing is shown."""
    response = strictly(respond(caller, max_output_tokens=len(SAYS.encode()) - 30))
    assert response.status == "incomplete"
    assert [(item.type, item.status) for item in response.output] == [
        ("message", "completed"),
        ("function_call", "completed"),
    ]


def test_results_go_back_by_the_previous_response_or_in_the_input(caller):
    """Both ways make the same prompt, and so does a chat of the same messages."""
    first = respond(caller)
    results = [{"type": "function_call_output", "call_id": item.call_id, "output": "rain"} for item in first.output[1:]]
    continued = strictly(respond(caller, input=results, previous_response_id=first.id))
    sent_back = respond(caller, input=[{"role": "user", "content": "hi"}, *first.output, *results])
    assert continued.usage.input_tokens == sent_back.usage.input_tokens > first.usage.input_tokens
    chat_calls = [
        {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
        for item in first.output[1:]
    ]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "I look.", "tool_calls": chat_calls},
    ]
    messages += [{"role": "tool", "tool_call_id": call["id"], "content": "rain"} for call in chat_calls]
    chat = caller.chat.completions.create(model="bytes", messages=messages, tools=CHAT_TOOLS, max_tokens=4)
    assert chat.usage.prompt_tokens == continued.usage.input_tokens
    shown = strictly(caller.responses.input_items.list(continued.id, order="asc"))
    assert [(item.type, item.output) for item in shown] == [("function_call_output", "rain")] * 2


def test_a_result_may_stand_apart_from_its_call(client):
    """Clients that keep a turn in the order in which it came send the text between both."""
    text = {"type": "message", "role": "assistant", "content": "I look."}
    assert respond(client, input=[CALL_ITEM, text, RESULT_ITEM]).status == "completed"


def test_calls_and_results_are_matched_over_the_whole_conversation(caller):
    first = respond(caller)
    with pytest.raises(openai.BadRequestError, match=f"No tool output found for .*{first.output[1].call_id}") as error:
        respond(caller, input="and now?", previous_response_id=first.id)
    assert error.value.param == "input"
    with pytest.raises(openai.BadRequestError, match="No tool call found for function call output with call_id c1"):
        respond(caller, input=[RESULT_ITEM, CALL_ITEM])


CALL_ITEM = {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": "{}"}
RESULT_ITEM = {"type": "function_call_output", "call_id": "c1", "output": "noon"}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOLS[0] | {"name": "two words"}]}, "tools.0.name"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": 3}]}, "input.0.output"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input.0.arguments"),
    ],
)
def test_bad_requests_name_the_parameter(client, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        respond(client, **options)
    assert error.value.param == param, error.value.message


def test_a_number_that_json_lacks_is_null_in_a_stream(client):
    body = (
        b'{"model": "bytes", "input": "hi", "stream": true, "max_output_tokens": 4, "tools": '
        b'[{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}, "default": NaN}}]}'
    )
    headers = {"content-type": "application/json"}
    answer = client._client.post(f"{client.base_url}responses", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    started = json.loads(events[0], parse_constant=refuse)["response"]
    assert started["tools"][0]["parameters"]["default"] is None
