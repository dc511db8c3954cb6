"""The one path from a prompt to token ids, for training and serving alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from iro_server.engines.quoted_tokens import QuotedTokens

TEXT_PARTS = ("text", "input_text")


def text_of(content: object) -> object:
    """A message's text where ``content`` is a list of text parts. ValueError for a part of another kind."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise ValueError('a list holds parts {"type": "text", "text": "..."} and no others')
        texts.append(part["text"])
    return "".join(texts)


def chat_prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a conversation up to where the assistant's turn begins, by the model's own chat template.

    A special token's spelling within a message is text, so that no message ends its turn or begins another's.
    """
    conversation = [dict(message) for message in messages]
    if QuotedTokens.occur(tokenizer, conversation):
        return QuotedTokens(tokenizer, conversation).prompt_ids(conversation)
    return list(
        tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=True, return_dict=False)
    )


def text_prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text to be continued as it stands."""
    return list(tokenizer(text)["input_ids"])


def item_prompt_ids(tokenizer: PreTrainedTokenizerBase, item: Mapping[str, Any]) -> list[int]:
    """Token ids of a training row: ``messages`` is a conversation, ``prompt`` a text to continue."""
    if "messages" in item:
        messages = [{**message, "content": text_of(message["content"])} for message in item["messages"]]
        return chat_prompt_ids(tokenizer, messages)
    return text_prompt_ids(tokenizer, item["prompt"])
