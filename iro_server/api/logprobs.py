"""Log-probabilities as OpenAI words them: a list of entries in chats, parallel lists in text completions."""

from __future__ import annotations

import re
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from iro_server import JsonObject
from iro_server.api.text import UNFINISHED
from iro_server.decoding.beam import SampledTokens

BYTE_LEVEL = {character: byte for byte, character in bytes_to_unicode().items()}  # a byte-level tokenizer's alphabet
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")  # a sentencepiece tokenizer's, of a character that it lacks


def token_texts(tokenizer: PreTrainedTokenizerBase) -> Callable[[int], str]:
    """The text of a token within a text, where a tokenizer that strips a text's first space leaves it; each token is
    decoded once."""
    texts: dict[int, str] = {}

    def text_of(token: int) -> str:
        if token not in texts:
            alone, twice = str(tokenizer.decode([token])), str(tokenizer.decode([token, token]))
            texts[token] = twice[len(alone) :] if twice.startswith(alone) else alone
        return texts[token]

    return text_of


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int, text: str) -> list[int] | None:
    """The bytes of a token whose text is ``text``; None for a part of a character where the tokenizer hides them."""
    if UNFINISHED not in text:
        return list(text.encode())
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if byte := BYTE_PIECE.fullmatch(piece):
        return [int(byte[1], 16)]
    if BYTE_LEVEL.keys() >= set(piece):
        return [BYTE_LEVEL[character] for character in piece]
    return list(text.encode()) if UNFINISHED in piece else None


def chat_logprobs(tokenizer: PreTrainedTokenizerBase, sampled: SampledTokens, num_top: int) -> JsonObject:
    """Each token's log-probability, and those of the ``num_top`` likeliest tokens in its place. ``value``: its share of
    the value functions. ``log_ratio``: by how much a tilt raised its log-probability."""
    text_of = token_texts(tokenizer)

    def entry(token: int, logprob: float) -> JsonObject:
        text = text_of(token)
        return {"token": text, "bytes": token_bytes(tokenizer, token, text), "logprob": logprob}

    content = [entry(token, logprob) for token, logprob in zip(sampled.tokens, sampled.logprobs, strict=True)]
    for place, position in enumerate(content):
        alternatives = sampled.alternatives[place][:num_top] if sampled.alternatives else []
        position["top_logprobs"] = [entry(*alternative) for alternative in alternatives]
    for name, numbers in (("value", sampled.values), ("log_ratio", sampled.log_ratios)):
        if numbers:
            for position, number in zip(content, numbers, strict=True):
                position[name] = number
    return {"content": content, "refusal": None}


def text_logprobs(
    tokenizer: PreTrainedTokenizerBase, sampled: SampledTokens, num_top: int, offsets: list[int]
) -> JsonObject:
    """``offsets``: of the tokens in the completion's text. The token drawn is among the ``num_top`` + 1 of
    ``top_logprobs``. ``values`` and ``log_ratios``: as a chat's ``value`` and ``log_ratio``."""
    text_of = token_texts(tokenizer)
    texts = [text_of(token) for token in sampled.tokens]
    drawn = [{text: logprob} for text, logprob in zip(texts, sampled.logprobs, strict=True)]
    alternatives = sampled.alternatives or [[] for _ in texts]
    top = [
        {text_of(token): logprob for token, logprob in reversed(likeliest[:num_top])} | own
        for likeliest, own in zip(alternatives, drawn, strict=True)
    ]
    return {
        "tokens": texts,
        "token_logprobs": sampled.logprobs,
        "text_offset": offsets,
        "top_logprobs": top if num_top else None,
    } | {name: numbers for name, numbers in (("values", sampled.values), ("log_ratios", sampled.log_ratios)) if numbers}
