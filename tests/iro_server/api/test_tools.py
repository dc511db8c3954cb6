"""Tools over the API: what a model writes as a call is one in the answer, and a required call is always whole."""

from __future__ import annotations

import json

import openai
import pytest

from tests.contract.strict import strictly
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import conforms, serving, settings_for

HI = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
CITY["additionalProperties"] = False
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": CITY}},
    {"type": "function", "function": {"name": "get_time", "parameters": NOTHING}},
]
RESPONSE_TOOLS = [{"type": "function", "parameters": None, "strict": True} | tool["function"] for tool in TOOLS]
SAYS = """I look.
<tool_call>
{"name": "get_weather", "arguments": {"city": "Oslo"}}
</tool_call>
<tool_call>
{"name": "get_time", "arguments": {}}
</tool_call>"""


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


def chat(client, **options):
    asked = {"model": "bytes", "messages": HI, "tools": TOOLS, "seed": 1, "max_tokens": 200}
    return client.chat.completions.create(**(asked | options))


def called(message):
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def joined(chunks):
    """The message of a stream, its calls put together as the client's own helper does."""
    content, calls, reason = "", {}, None
    for chunk in map(conforms, chunks):
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or []:
            call = calls.setdefault(part.index, {"id": part.id, "name": "", "arguments": ""})
            call["name"] += part.function.name or ""
            call["arguments"] += part.function.arguments or ""
    return content, list(calls.values()), reason


BOTH = [("get_weather", {"city": "Oslo"}), ("get_time", {})]


def test_calls_that_the_model_writes(caller):
    (choice,) = strictly(chat(caller)).choices
    assert (choice.message.content, called(choice.message), choice.finish_reason) == ("I look.", BOTH, "tool_calls")
    assert len({call.id for call in choice.message.tool_calls}) == 2
    (choice,) = chat(caller, parallel_tool_calls=False).choices
    assert called(choice.message) == BOTH[:1]
    (choice,) = chat(caller, tool_choice="none").choices
    assert choice.message.tool_calls is None and choice.message.content == SAYS


def test_a_stream_of_calls(caller):
    content, calls, reason = joined(chat(caller, stream=True, logprobs=True))
    assert (content, reason) == ("I look.", "tool_calls")
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == BOTH
    assert all(call["id"] for call in calls)
    chunks = [chunk.choices[0] for chunk in chat(caller, stream=True, logprobs=True)]
    entries = [entry for choice in chunks if choice.logprobs for entry in choice.logprobs.content]
    assert len(entries) == chat(caller, logprobs=True).usage.completion_tokens
    with caller.chat.completions.stream(model="bytes", messages=HI, tools=TOOLS, max_tokens=200) as events:
        final = events.get_final_completion()
    assert called(final.choices[0].message) == BOTH


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_required_call_is_whole_whatever_the_model_says(client, seed, choice):
    (answer,) = strictly(chat(client, tool_choice=choice, seed=seed)).choices
    ((name, arguments),) = called(answer.message)
    assert answer.message.content is None
    assert answer.finish_reason == ("tool_calls" if choice == "required" else "stop")
    assert (name, arguments.get("city")) in {("get_weather", "Oslo"), ("get_weather", "Rome"), ("get_time", None)}
    assert choice == "required" or name == "get_weather"
    content, ((call),), reason = joined(chat(client, tool_choice=choice, seed=seed, stream=True))
    assert (call["name"], json.loads(call["arguments"])) == (name, arguments)
    assert (content, reason) == ("", answer.finish_reason)


def test_a_search_calls_too(client):
    search = {"beam_width": 2, "num_successors": 2, "chunk_length": 4}
    choices = chat(client, tool_choice="required", n=4, extra_body={"search": search}).choices
    assert all(len(called(choice.message)) == 1 for choice in choices)


def test_a_call_that_is_cut_says_length(client):
    named = {"type": "function", "function": {"name": "get_weather"}}
    (choice,) = chat(client, tool_choice=named, max_tokens=45).choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name) == ("length", "get_weather")
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.function.arguments)


def test_allowed_tools_are_the_only_ones(client):
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    (choice,) = chat(client, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}).choices
    assert called(choice.message) == [("get_time", {})]


def test_results_go_back_to_the_model(caller):
    message = chat(caller).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    for sent in (message, message.model_dump()):
        assert chat(caller, messages=[*HI, sent, *results]).usage.prompt_tokens > chat(caller).usage.prompt_tokens + 100


CALL = {"id": "a", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "noon"}
BAD = [
    ({"tools": []}, "tools"),
    ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ({"tool_choice": "required", "tools": None}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "unknown"}}}, "tool_choice"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"messages": [*HI, {"role": "tool", "content": "sunny"}]}, "messages.1"),
    ({"messages": [*HI, RESULT]}, "messages.1"),
    ({"messages": [*HI, CALLING, RESULT | {"tool_call_id": "b"}]}, "messages.2"),
    ({"messages": [*HI, CALLING, RESULT, *HI, RESULT]}, "messages.4"),
    ({"messages": [*HI, CALLING, *HI]}, "messages.1"),
    ({"messages": [*HI, CALLING | {"tool_calls": [CALL, CALL | {"id": "b"}]}, RESULT]}, "messages.1"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": []}, {"role": "assistant"}]}, "messages.1.content"),
]


@pytest.mark.parametrize(("options", "param"), BAD)
def test_bad_requests_name_the_parameter(client, options, param):
    body = {"model": "bytes", "messages": HI, "tools": TOOLS} | options
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert refused.value.param == param


@pytest.mark.parametrize("arguments", ['{"city": ', "[1]"])
def test_messages_that_the_chat_template_cannot_render_are_a_bad_request(tmp_path, arguments):
    """A template in the form of Qwen3-Coder's, which takes arguments apart, and arguments that are no object."""
    engine = ByteEngine(length=4096)
    engine.tokenizer.chat_template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% for call in m.tool_calls or [] %}"
        "{% for name, value in call.function.arguments | items %}{{ name }}={{ value }}{% endfor %}"
        "{% endfor %}{% endfor %}"
    )
    function = {"name": "get_weather", "arguments": arguments}
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a", "type": "function", "function": function}],
    }
    items = [
        {"type": "function_call", "call_id": "a", **function},
        {"type": "function_call_output", "call_id": "a", "output": "noon"},
    ]
    with serving(settings_for(tmp_path), engine) as client:
        with pytest.raises(openai.BadRequestError, match="chat template cannot render") as refused:
            chat(client, messages=[*HI, called, RESULT])
        with pytest.raises(openai.BadRequestError, match="chat template cannot render") as of_response:
            client.responses.create(model="bytes", input=items, tools=RESPONSE_TOOLS)
    assert (refused.value.param, of_response.value.param) == ("messages", "input")


def test_parameters_that_no_call_can_be_held_to_name_the_tools(client):
    odd = [{"type": "function", "function": {"name": "odd", "parameters": {"type": "object", "not": {}}}}]
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, tools=odd, tool_choice="required")
    assert refused.value.param == "tools"
    assert chat(client, tools=odd, max_tokens=4).choices
