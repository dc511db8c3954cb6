"""The one path from a prompt to token ids, for training and serving alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from iro_server import JsonObject
from iro_server.engines.quoted_tokens import QuotedTokens
from iro_server.engines.text_parts import text_of
from iro_server.engines.tool_calls import as_plain_messages, as_template_expects, template_for_tools

DEVELOPER = re.compile(r"""(["'])developer\1""")  # as a chat template names a role


def chat_prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[JsonObject] = (),
    begun: str = "",
) -> list[int]:
    """Token ids of a conversation up to where the assistant's turn begins, by the model's own chat template, and of the
    text ``begun`` that the turn begins with.

    A special token's spelling within a message is text, so that no message ends its turn or begins another's. A
    template that knows no ``tools`` is given them in the system message. Messages of the role ``developer`` are the
    system's where the template does not name that role.
    """
    conversation = as_template_roles(tokenizer, messages, tools)
    shown = list(tools) if tools and template_for_tools(tokenizer, tools) else None
    if shown:
        conversation = as_template_expects(conversation)
    elif uses_tools(conversation, tools):
        conversation = as_plain_messages(conversation, tools)
    if QuotedTokens.occur(tokenizer, [conversation, shown]):
        token_ids = QuotedTokens(tokenizer, [conversation, shown]).prompt_ids(conversation, shown)
    else:
        template: Callable[..., list[int]] = tokenizer.apply_chat_template  # type: ignore[assignment]
        token_ids = template(conversation, tools=shown, add_generation_prompt=True, tokenize=True, return_dict=False)
    begun_ids = tokenizer(begun, add_special_tokens=False)["input_ids"] if begun else []
    return [*token_ids, *begun_ids]


def as_template_roles(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], tools: Sequence[JsonObject] = ()
) -> list[JsonObject]:
    """Messages of the role ``developer`` as the system's, which means the same, unless the template names the role."""
    conversation = [dict(message) for message in messages]
    if not any(message["role"] == "developer" for message in conversation):
        return conversation
    if DEVELOPER.search(str(tokenizer.get_chat_template(tools=list(tools) or None))):
        return conversation
    return [message | {"role": "system"} if message["role"] == "developer" else message for message in conversation]


def uses_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[JsonObject]) -> bool:
    """Whether a conversation has tools, calls of them or their results."""
    return bool(tools) or any(message.get("tool_calls") or message["role"] == "tool" for message in messages)


def text_prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text to be continued as it stands."""
    return list(tokenizer(text)["input_ids"])


def item_prompt_ids(tokenizer: PreTrainedTokenizerBase, item: Mapping[str, Any]) -> list[int]:
    """Token ids of a training row: ``messages`` is a conversation, ``prompt`` a text to continue."""
    if "messages" in item:
        messages = [{**message, "content": text_of(message.get("content"))} for message in item["messages"]]
        return chat_prompt_ids(tokenizer, messages, item.get("tools") or ())
    return text_prompt_ids(tokenizer, item["prompt"])
