"""Tools in a conversation: shown to the model by its own chat template or by a system message, and its calls read back.

Calls are written as the template's family writes them: ``<tool_call>{"name", "arguments"}</tool_call>`` (Hermes, Qwen),
or as bare JSON, with "parameters" (Llama 3) or in a list (Mistral). Without a template for tools, as Hermes does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from iro_server import JsonObject, JsonValue

OPENING, CLOSING = "<tool_call>", "</tool_call>"
INSTRUCTIONS = """You can call these functions, given one a line as JSON:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON between these tags, and nothing after it:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""
BEGUN = re.compile(
    r"""\s*\{\s*"name"\s*:\s*"(?P<name>[^"]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?P<arguments>.*)""", re.DOTALL
)


@dataclass(frozen=True)
class ToolCall:
    """``arguments``: JSON, as the model wrote it."""

    name: str
    arguments: str

    def as_object(self) -> JsonObject:
        """In OpenAI's shape, without an id."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class CallSyntax:
    """How a model writes calls: between tags or, where it has none, as the whole text."""

    has_tags: bool = True
    arguments: str = "arguments"

    @classmethod
    def of_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, tools: Sequence[JsonObject]) -> CallSyntax:
        template = template_for_tools(tokenizer, tools)
        if template is None or OPENING in template:
            return cls()
        return cls(has_tags=False, arguments="parameters" if '"parameters"' in template else "arguments")

    @property
    def opening(self) -> str:
        """What a call begins with, before its JSON."""
        return f"{OPENING}\n" if self.has_tags else ""

    def starts(self, text: str) -> int | None:
        """Where calls begin in ``text``, or may begin once it goes on; all before it is content."""
        if self.has_tags:
            start = text.find(OPENING)
            if start >= 0:
                return start
            return next((len(text) - n for n in range(len(OPENING) - 1, 0, -1) if text.endswith(OPENING[:n])), None)
        return 0 if not text.strip() or text.lstrip()[0] in "{[" else None

    def parse(self, text: str, names: Sequence[str]) -> tuple[str, list[ToolCall]]:
        """The content and the calls of a whole answer; without a call of one of ``names``, all of it is content."""
        start = self.starts(text)
        if start is None:
            return text, []
        calls = [call for call in _written_calls(text[start:]) if call.name in names]
        return (text[:start].rstrip(), calls) if calls else (text, [])


def _written_calls(text: str) -> list[ToolCall]:
    """Those of all JSON objects in ``text`` that are calls, in order; within a call no other begins."""
    decoder, calls, place = json.JSONDecoder(), [], 0
    while (place := text.find("{", place)) >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        if call := _call(value):
            calls.append(call)
        place = end
    return calls


def _call(value: JsonValue) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    arguments, name = value.get("arguments", value.get("parameters", {})), value.get("name")
    if not isinstance(name, str):
        return None
    return ToolCall(name, arguments if isinstance(arguments, str) else json.dumps(arguments))


def begun_call(text: str) -> ToolCall | None:
    """The call that ``text``, which a schema of ``call_schema`` holds, writes or begins to write."""
    begun = BEGUN.match(text)
    if begun is None:
        return None
    arguments = begun["arguments"]
    try:
        _, end = json.JSONDecoder().raw_decode(arguments)
    except (ValueError, RecursionError):  # not whole yet, or cut
        return ToolCall(begun["name"], arguments)
    return ToolCall(begun["name"], arguments[:end])


@dataclass(frozen=True)
class Tools:
    """A conversation's tools, in OpenAI's shape, and how the model calls them."""

    functions: list[JsonObject]
    syntax: CallSyntax
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", [function["function"]["name"] for function in self.functions])

    @classmethod
    def of_item(cls, tokenizer: PreTrainedTokenizerBase, functions: list[JsonObject]) -> Tools:
        return cls(functions, CallSyntax.of_tokenizer(tokenizer, functions))

    def parse(self, text: str) -> tuple[str, list[ToolCall]]:
        return self.syntax.parse(text, self.names)

    def call_schema(self, names: Sequence[str]) -> JsonObject:
        """The schema of one call of a function of ``names``."""
        chosen = [tool["function"] for tool in self.functions if tool["function"]["name"] in names]
        if len(chosen) == 1:
            return self._schema(chosen[0], "#")
        return {"anyOf": [self._schema(function, f"#/anyOf/{i}") for i, function in enumerate(chosen)]}

    def _schema(self, function: JsonObject, place: str) -> JsonObject:
        key = self.syntax.arguments
        parameters = function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
        properties = {"name": {"const": function["name"]}, key: _moved(parameters, f"{place}/properties/{key}")}
        return {"type": "object", "properties": properties, "required": ["name", key], "additionalProperties": False}


def _moved(schema: JsonValue, place: str) -> JsonValue:
    """A schema whose references within itself hold at ``place`` of a larger one."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + item[1:] if key == "$ref" and isinstance(item, str) and item[:1] == "#" else _moved(item, place)
        for key, item in schema.items()
    }


def tool_calls_of(
    tokenizer: PreTrainedTokenizerBase, item: Mapping[str, object], text: str
) -> tuple[str, list[JsonObject]]:
    """The content of a training row's answer, and its calls of the row's ``tools`` in OpenAI's shape, without ids."""
    functions = item.get("tools")
    if not isinstance(functions, list) or not functions:
        return text, []
    content, calls = Tools.of_item(tokenizer, functions).parse(text)
    return content, [call.as_object() for call in calls]


def template_for_tools(tokenizer: PreTrainedTokenizerBase, tools: Sequence[JsonObject]) -> str | None:
    """The chat template, where it shows tools."""
    template = str(tokenizer.get_chat_template(tools=list(tools)))
    return template if re.search(r"\btools\b", template) else None


def as_template_expects(messages: Sequence[Mapping[str, object]]) -> list[JsonObject]:
    """Messages for a template that knows tools: arguments as objects, and texts where content is null."""
    return [_with_objects(message) for message in messages]


def _with_objects(message: Mapping[str, object]) -> JsonObject:
    plain = dict(message) | {"content": message.get("content") or ""}
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        plain["tool_calls"] = [
            {"id": call.get("id"), "type": "function", "function": _with_arguments(call["function"])} for call in calls
        ]
    return plain


def _with_arguments(function: JsonObject) -> JsonObject:
    try:
        return function | {"arguments": json.loads(function["arguments"])}
    except (ValueError, RecursionError, TypeError):
        return dict(function)


def as_plain_messages(messages: Sequence[Mapping[str, object]], tools: Sequence[JsonObject]) -> list[JsonObject]:
    """Messages for a template that knows no tools: they are named in the system message, a call is its text, and its
    result is the user's."""
    plain = [_plain(message) for message in messages]
    if not tools:
        return plain
    instructions = INSTRUCTIONS.format(tools="\n".join(json.dumps(tool["function"]) for tool in tools))
    if plain and plain[0]["role"] in ("system", "developer"):
        first = plain[0] | {"content": f"{plain[0]['content']}\n\n{instructions}"}
        return [first, *plain[1:]]
    return [{"role": "system", "content": instructions}, *plain]


def _plain(message: Mapping[str, object]) -> JsonObject:
    content = str(message.get("content") or "")
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        written = json.dumps({"name": call["function"]["name"], **_arguments(call["function"])})
        content += f"{content and chr(10)}{OPENING}\n{written}\n{CLOSING}"
    return {"role": message["role"], "content": content}


def _arguments(function: JsonObject) -> JsonObject:
    return {"arguments": _with_arguments(function).get("arguments", {})}
