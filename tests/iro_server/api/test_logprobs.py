"""Tokens that are parts of a character: where their text begins, and their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from iro_server.api.logprobs import chat_logprobs, token_bytes
from iro_server.api.text import UNFINISHED, Detokenizer, GrowingText
from iro_server.decoding.beam import SampledTokens
from tests.iro_server.api.byte_engine import SCRIPT
from tests.iro_server.api.test_text import BYTE_NAMES, SENTENCEPIECE, TOKENIZER

ASK = {"model": "bytes", "temperature": 0, "max_tokens": 40}


def starts(text: str) -> list[int]:
    """Of each byte's character in ``text``."""
    return [start for start, character in enumerate(text) for _ in character.encode()]


@pytest.mark.parametrize("stream", [False, True])
def test_an_offset_is_the_place_of_the_token_in_the_completions_text(client, stream):
    answer = client.completions.create(prompt="So", logprobs=1, stream=stream, **ASK)
    parts = [part.choices[0] for part in (answer if stream else [answer])]
    offsets = [offset for part in parts if part.logprobs for offset in part.logprobs.text_offset]
    assert "".join(part.text for part in parts) == SCRIPT
    assert offsets == [*starts(SCRIPT), len(SCRIPT)]  # the last is of the end token


@given(st.text("aé€😀", max_size=12), st.lists(st.integers(1, 5), max_size=20))
def test_offsets_are_the_same_read_at_once_and_in_parts(text, steps):
    tokens, count = TOKENIZER(text)["input_ids"], 0
    growing = GrowingText(Detokenizer(TOKENIZER))
    for step in [*steps, len(tokens)]:
        count = min(count + step, len(tokens))
        assert growing.offsets(tokens[:count]) == starts(text)[:count]


@given(st.binary(max_size=20))
def test_the_text_has_each_whole_character_at_its_offset(data):
    tokens = [TOKENIZER.convert_tokens_to_ids(BYTE_NAMES[byte]) for byte in data]
    text, offsets = TOKENIZER.decode(tokens), GrowingText(Detokenizer(TOKENIZER)).offsets(tokens)
    token_offsets = [(TOKENIZER.decode([token]), offset) for token, offset in zip(tokens, offsets, strict=True)]
    assert all(text.startswith(character, offset) for character, offset in token_offsets if character != UNFINISHED)
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("stream", [False, True])
def test_the_bytes_of_all_tokens_are_the_text(client, stream):
    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(messages=messages, logprobs=True, top_logprobs=1, stream=stream, **ASK)
    choices = [part.choices[0] for part in (answer if stream else [answer])]
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == SCRIPT + "<end>"
    assert all(token.top_logprobs[0].bytes == token.bytes for token in tokens)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, SENTENCEPIECE])
@pytest.mark.parametrize("text", ["é", "😀", UNFINISHED])
def test_a_token_that_is_a_part_of_a_character_has_its_byte(tokenizer, text):
    spelled = [TOKENIZER.convert_ids_to_tokens(token) for token in TOKENIZER(text)["input_ids"]]
    pieces = spelled if tokenizer is TOKENIZER else [f"<0x{byte:02X}>" for byte in text.encode()]
    tokens = tokenizer.convert_tokens_to_ids(pieces)
    assert [token_bytes(tokenizer, token, tokenizer.decode([token])) for token in tokens] == [
        [byte] for byte in text.encode()
    ]


def test_tokens_of_a_tokenizer_that_strips_keep_their_spaces():
    vocabulary = {"<s>": 0, "▁a": 1, "a": 2, "▁": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
    tokens = [2, 1, 3, 1, 2, *(4 + byte for byte in "é😀\n".encode())]
    content = chat_logprobs(fast, SampledTokens(tokens, [-1.0] * len(tokens)), 0)["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == fast.decode(tokens)
    assert [token["token"] for token in content[:5]] == ["a", " a", " ", " a", "a"]
