"""The ``input`` of model graders: messages whose contents are templates, in the shapes OpenAI publishes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from iro_server import JsonObject
from iro_server.engines.text_parts import part_text
from iro_server.graders.base import TextTooLong, check_length
from iro_server.graders.templates import Template, render


def _texts(content: object) -> list[str]:
    """The texts of a string, of a part such as ``{"type": "input_text", "text": ...}``, or of a list of these."""
    parts = content if isinstance(content, list) else [content]
    return [part if isinstance(part, str) else part_text(part) for part in parts]


class Message(BaseModel):
    """``content``: its texts, which are joined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[list[Template], BeforeValidator(_texts)]
    type: Literal["message"] = "message"


def render_messages(messages: Sequence[Message], scope: JsonObject, limit: int) -> list[dict[str, str]]:
    """Chat messages with the templates filled in. Raises MissingField, and TextTooLong over ``limit`` bytes in all."""
    rendered, remaining = [], limit
    for message in messages:
        content = _content(message, scope, limit)
        remaining -= check_length(content, limit)
        if remaining < 0:
            raise TextTooLong(limit)
        rendered.append({"role": message.role, "content": content})
    return rendered


def _content(message: Message, scope: JsonObject, limit: int) -> str:
    return without_surrogates("".join(render(text, scope, limit) for text in message.content))


def without_surrogates(text: str) -> str:
    """JSON may spell lone surrogates, which no request can carry."""
    return text.encode(errors="replace").decode()


def with_instruction(messages: list[dict[str, str]], instruction: str) -> list[dict[str, str]]:
    """``instruction`` at the end of the last message where that is the user's, else in a message after it."""
    *before, last = messages
    if last["role"] == "user":
        return [*before, {"role": "user", "content": f"{last['content']}\n\n{instruction}"}]
    return [*messages, {"role": "user", "content": instruction}]
