"""Token ids of a text that goes on from another one."""

from __future__ import annotations

from functools import lru_cache

from transformers import PreTrainedTokenizerBase

CONTEXTS = ("\n", "a", "0", ".", "|")  # tried in turn: a tokenizer may merge one with the text that follows


def continued_ids(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> list[int]:
    """Token ids of a text that follows another: without the space that SentencePiece's tokenizers put first.

    ``options``: of the tokenizer.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    if not text or not _writes_a_space(tokenizer):
        return ids(text)
    for context in CONTEXTS:
        before, both = ids(context), ids(context + text)
        if before and both[: len(before)] == before:
            return both[len(before) :]
    return ids(text)


@lru_cache(maxsize=16)
def _writes_a_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode([*ids, *ids])) == "a a"
