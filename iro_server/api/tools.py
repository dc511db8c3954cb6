"""``tools`` and ``tool_choice`` of a chat request, and the calls of an answer in OpenAI's words."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from iro_server import JsonObject, JsonValue
from iro_server.api.errors import bad_request
from iro_server.api.messages import Tool
from iro_server.api.registry import ServedModel
from iro_server.engines.tool_calls import ToolCall, Tools, begun_call
from iro_server.store.tables import new_id


@dataclass(frozen=True)
class ToolUse:
    """``required``: the functions of which the answer is a call; empty where the model decides. ``named``: whether the
    request names the one. ``parallel``: whether an answer may have several. ``ids``: of its calls, by choice and place.
    """

    tools: Tools
    required: list[str]
    named: bool = False
    parallel: bool = True
    ids: defaultdict[tuple[int, int], str] = field(default_factory=lambda: defaultdict(lambda: new_id("call_")))

    @property
    def begun(self) -> str:
        """What the answer begins with before it is sampled."""
        return self.tools.syntax.opening if self.required else ""

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """The content and the calls of an answer; of one that was cut, a call as far as it goes."""
        if self.required:
            call = begun_call(text)
            return ("", [call]) if call else ("", [])
        content, calls = self.tools.parse(text)
        return content, calls if self.parallel else calls[:1]

    def call_objects(self, index: int, calls: list[ToolCall]) -> list[JsonObject]:
        """The calls of choice ``index`` in OpenAI's words; each has its id in all answers and streams of the use."""
        return [{"id": self.ids[index, place], **call.as_object()} for place, call in enumerate(calls)]

    def finish_reason(self, reason: str, calls: list[ToolCall]) -> str:
        """OpenAI's "stop" after the call of a function that the request names."""
        return "tool_calls" if calls and reason == "stop" and not self.named else reason


def tool_use(tools: list[Tool] | None, choice: JsonValue, parallel: bool | None, model: ServedModel) -> ToolUse | None:
    """How an answer uses tools; None where it has none to use. 400 for a choice that is none."""
    mode, names = _choice(choice)
    offered = [tool.function.name for tool in tools or []]
    if unknown := set(names or []) - set(offered):
        message = f"Invalid 'tool_choice': no function {min(unknown)} in tools."
        raise bad_request(message, "tool_choice")
    is_shown = mode == "named" or names is None
    functions = [tool.plain() for tool in tools or [] if is_shown or tool.function.name in (names or [])]
    if mode == "required" and not functions:
        raise bad_request("'tool_choice' is only allowed when 'tools' are specified.", "tool_choice")
    if mode == "none" or not functions:
        return None
    described = Tools.of_item(model.engine.tokenizer, functions)
    required = {"auto": [], "required": described.names, "named": names or []}[mode]
    return ToolUse(described, required, mode == "named", parallel is not False)


def _choice(choice: JsonValue) -> tuple[str, list[str] | None]:
    """The mode (none, auto, required, named), and the functions to choose from; None for all."""
    match choice:
        case None:
            return "auto", None
        case "none" | "auto" | "required":
            return choice, None
        case {"type": "function", "function": {"name": str(name)}}:
            return "named", [name]
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": ("auto" | "required") as mode, "tools": list(allowed)},
        }:
            names = [_name(tool) for tool in allowed]
            return mode, [name for name in names if name is not None]
    message = "none, auto, required, a function's name or allowed_tools of functions"
    raise bad_request(f"Invalid 'tool_choice': this server takes {message}.", "tool_choice", "unsupported_parameter")


def _name(tool: JsonValue) -> str | None:
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
    return None


class CallStream:
    """The deltas of one streamed answer, choice ``index``: content until a call may begin, then calls; ``ToolUse.read``
    of the whole."""

    def __init__(self, use: ToolUse, index: int) -> None:
        self.use, self.index = use, index
        self._sent_content = self._sent_arguments = 0
        self._has_begun = False

    def text(self, text: str) -> list[JsonObject]:
        """Deltas of the answer's beginning ``text``, past those before."""
        if self.use.required:
            return self._begun(text)
        return self._content(text[: self.use.tools.syntax.starts(text)].rstrip())  # space before a call is no content

    def end(self, text: str) -> list[JsonObject]:
        """Deltas that complete the whole answer ``text``."""
        if self.use.required:
            return self._begun(text)
        content, calls = self.use.read(text)
        indexed_calls = [{"index": i, **call} for i, call in enumerate(self.use.call_objects(self.index, calls))]
        return self._content(content) + [{"tool_calls": [call]} for call in indexed_calls]

    def _content(self, content: str) -> list[JsonObject]:
        new = content[self._sent_content :]
        self._sent_content += len(new)
        return [{"content": new}] if new else []

    def _begun(self, text: str) -> list[JsonObject]:
        call = begun_call(text)
        if call is None:
            return []
        deltas = []
        if not self._has_begun:
            self._has_begun = True
            (begun,) = self.use.call_objects(self.index, [ToolCall(call.name, "")])
            deltas.append({"tool_calls": [{"index": 0, **begun}]})
        if new := call.arguments[self._sent_arguments :]:
            self._sent_arguments += len(new)
            deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": new}}]})
        return deltas
