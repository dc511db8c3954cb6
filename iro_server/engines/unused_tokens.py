"""Token ids of a model that no completion needs."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def unused_tokens(tokenizer: PreTrainedTokenizerBase, vocabulary: int, stop_ids: Container[int]) -> list[int]:
    """Rows of the output head past the tokenizer's ids, then special tokens that neither end a completion nor stand in
    the chat template, the highest ids first: there models have theirs for later uses."""
    named = set(tokenizer.get_vocab().values())
    template = str(tokenizer.chat_template or "")
    special = [
        token
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special and token < vocabulary and token not in stop_ids and added.content not in template
    ]
    return [*(token for token in range(vocabulary) if token not in named), *sorted(special, reverse=True)]
