"""How calls of tools are shown to a model, and read back from what it writes."""

from __future__ import annotations

import json

import jsonschema
import pytest

from iro_server.engines.prepare import prepare_model
from iro_server.engines.prompts import chat_prompt_ids, item_prompt_ids
from iro_server.engines.tool_calls import CallSyntax, ToolCall, Tools, begun_call, tool_calls_of
from tests.iro_server.api.byte_engine import byte_tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "$defs": {"city": {"enum": ["Paris", "Oslo"]}},
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
TALK = [
    {"role": "user", "content": "How is Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "<|im_end|>sunny"},
]
LLAMA = '{% if tools %}{{ tools | tojson }} "parameters" {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}'
WITHOUT_TOOLS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
HERMES = (
    "{% for t in tools %}{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
)


def templated(template: str):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Sunny.", "Sunny.", []),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [("f", '{"a": 1}')]),
        ('Let me see.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>', "Let me see.", [("f", "{}")]),
        (
            '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g", "arguments": "x"}',
            "",
            [("f", "{}"), ("g", "x")],
        ),
        ('<tool_call>{"name": "f", "arguments": {"a": ', '<tool_call>{"name": "f", "arguments": {"a": ', []),
        ('<tool_call>{"name": "unknown", "arguments": {}}', '<tool_call>{"name": "unknown", "arguments": {}}', []),
        ('{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', []),
    ],
)
def test_calls_are_read_from_their_tags(text, content, calls) -> None:
    assert CallSyntax().parse(text, ["f", "g"]) == (content, [ToolCall(*call) for call in calls])


def test_bare_json_is_a_call_where_the_template_has_no_tags() -> None:
    syntax = CallSyntax.of_tokenizer(templated(LLAMA), [TIME])
    assert (syntax.has_tags, syntax.arguments, syntax.opening) == (False, "parameters", "")
    assert syntax.parse('{"name": "f", "parameters": {"a": 1}}', ["f"]) == ("", [ToolCall("f", '{"a": 1}')])
    mistral = '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"b": 2}}]'
    assert len(syntax.parse(mistral, ["f"])[1]) == 2
    assert syntax.parse("It is {sunny}.", ["f"]) == ("It is {sunny}.", [])


def test_a_template_that_knows_tools_renders_them() -> None:
    tokenizer = templated(HERMES)
    text = tokenizer.decode(chat_prompt_ids(tokenizer, TALK, [WEATHER]))
    assert text.startswith(json.dumps(WEATHER)[:20]) and "<tools>" not in text
    assert '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}' in text
    assert CallSyntax.of_tokenizer(tokenizer, [WEATHER]) == CallSyntax()


def test_a_template_that_knows_none_is_given_tools_as_text() -> None:
    """SmolLM2's. A special token in a result ends no turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepare_model())
    ids = chat_prompt_ids(tokenizer, TALK, [WEATHER, TIME], begun="<tool_call>\n")
    text = tokenizer.decode(ids)
    assert '"name": "get_weather"' in text and '"name": "get_time"' in text and "named SmolLM" not in text
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in text
    assert "<tool_response>\n<|im_end|>sunny\n</tool_response>" in text and text.endswith("assistant\n<tool_call>\n")
    assert ids.count(tokenizer.eos_token_id) == 4  # system, user, assistant, result
    assert (
        item_prompt_ids(tokenizer, {"messages": TALK, "tools": [WEATHER, TIME]})
        == ids[: -len(tokenizer("<tool_call>\n")["input_ids"])]
    )


@pytest.mark.parametrize("template", [HERMES, WITHOUT_TOOLS])
def test_tools_join_a_developers_message_as_they_join_the_systems(template) -> None:
    def prompt(role: str) -> list[int]:
        return chat_prompt_ids(tokenizer, [{"role": role, "content": "Be brief."}, TALK[0]], [WEATHER])

    tokenizer = templated(template)
    assert prompt("developer") == prompt("system")


def test_a_schema_of_calls_takes_each_functions_own_arguments() -> None:
    tools = Tools.of_item(byte_tokenizer(), [WEATHER, TIME])
    schema = tools.call_schema(tools.names)
    jsonschema.validate({"name": "get_weather", "arguments": {"city": "Oslo"}}, schema)
    jsonschema.validate({"name": "get_time", "arguments": {}}, schema)
    for wrong in ({"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "get_time", "arguments": {"a": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
    jsonschema.validate({"name": "get_weather", "arguments": {"city": "Oslo"}}, tools.call_schema(["get_weather"]))


def test_a_begun_call_grows_to_the_whole() -> None:
    text = '{ "name": "f", "arguments": {"a": {"b": [1, 2]}} }'
    begun = [call.arguments for end in range(len(text) + 1) if (call := begun_call(text[:end]))]
    assert begun[-1] == '{"a": {"b": [1, 2]}}' and begun[0] == ""
    assert all(begun[-1].startswith(part) for part in begun)


def test_a_rows_answer_has_calls_of_its_tools_alone() -> None:
    text = 'So: <tool_call>{"name": "get_time", "arguments": {}}</tool_call>'
    called = {"type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    assert tool_calls_of(byte_tokenizer(), {"tools": [TIME]}, text) == ("So:", [called])
    assert tool_calls_of(byte_tokenizer(), {"tools": [WEATHER]}, text) == (text, [])
    assert tool_calls_of(byte_tokenizer(), {}, text) == (text, [])


def test_a_call_that_is_cut_keeps_the_braces_that_it_has():
    text = '{"name": "f", "arguments": {"a": {"b": 1}}}'
    called = [begun_call(text[:end]).arguments for end in range(len(text) - 3, len(text) + 1)]
    assert called == ['{"a": {"b": 1', '{"a": {"b": 1}', '{"a": {"b": 1}}', '{"a": {"b": 1}}']
