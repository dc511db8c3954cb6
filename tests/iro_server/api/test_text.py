from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from iro_server.api.text import Detokenizer, GrowingText
from tests.iro_server.api.byte_engine import byte_tokenizer

TOKENIZER = byte_tokenizer()
BYTE_NAMES = bytes_to_unicode()


@given(st.binary(max_size=30), st.lists(st.text("abé", min_size=1, max_size=3), max_size=2))
def test_settled_text_only_grows_towards_the_whole(data, stops):
    tokens = [TOKENIZER.convert_tokens_to_ids(BYTE_NAMES[byte]) for byte in data]
    detokenizer = Detokenizer(TOKENIZER, tuple(stops))
    text, _ = detokenizer.final_text(tokens)
    settled = [detokenizer.settled(tokens[:n]) for n in range(len(tokens) + 1)]
    assert all(later.startswith(earlier) for earlier, later in zip(settled, [*settled[1:], text], strict=True))


@given(
    data=st.binary(max_size=30) | st.text("aé😀", max_size=12).map(str.encode),
    stops=st.lists(st.text("abé", min_size=1, max_size=3), max_size=2),
    steps=st.lists(st.integers(0, 5), max_size=30),
)
def test_text_read_token_by_token_is_the_whole_text(data, stops, steps):
    tokens = [TOKENIZER.convert_tokens_to_ids(BYTE_NAMES[byte]) for byte in data]
    detokenizer, count = Detokenizer(TOKENIZER, tuple(stops)), 0
    growing = GrowingText(detokenizer)
    for step in [*steps, len(tokens)]:
        count = min(count + step, len(tokens))
        settled, num_within = growing.settled(tokens[:count])
        assert settled == detokenizer.settled(tokens[:count])
        assert len(detokenizer.decode(tokens[:num_within])) <= len(settled)
        if num_within < count:
            assert len(detokenizer.decode(tokens[: num_within + 1])) > len(settled)


def sentencepiece_tokenizer():
    """Its first token loses a space, and characters that it lacks are bytes, which all show as halves until whole."""
    vocabulary = {"<s>": 0, "▁a": 1, "b": 2, "▁": 3} | {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


SENTENCEPIECE = sentencepiece_tokenizer()
PIECES = [[0], [1], [2], [3], [4 + byte for byte in "é".encode()], [4 + byte for byte in "😀".encode()]]


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.sampled_from([" a", "b a", "é"]), max_size=2))
def test_text_read_token_by_token_is_the_whole_text_of_a_tokenizer_that_strips(pieces, stops):
    tokens = [token for piece in pieces for token in piece]
    detokenizer = Detokenizer(SENTENCEPIECE, tuple(stops))
    growing = GrowingText(detokenizer)
    settled = [growing.settled(tokens[:count])[0] for count in range(len(tokens) + 1)]
    text, _ = detokenizer.final_text(tokens)
    assert all(later.startswith(earlier) for earlier, later in zip(settled, [*settled[1:], text], strict=True))
    assert settled[-1] == detokenizer.settled(tokens)


class CountedTokenizer:
    """Counts the tokens that it decodes."""

    def __init__(self):
        self.num_decoded = 0

    def decode(self, tokens, **options):
        self.num_decoded += len(tokens)
        return TOKENIZER.decode(tokens, **options)


def test_the_work_of_a_stream_and_of_stop_strings_grows_with_the_text_alone():
    tokens = TOKENIZER("a long answer, ünd so on; " * 40)["input_ids"]
    counted = CountedTokenizer()
    detokenizer = Detokenizer(counted, ("<stop>",))
    growing = GrowingText(detokenizer)
    for count in range(0, len(tokens), 4):
        growing.settled(tokens[:count])
    assert counted.num_decoded < 10 * len(tokens)
    counted.num_decoded = 0
    for start in range(0, len(tokens), 8):
        context = tokens[max(0, start - detokenizer.num_context_tokens) : start]
        assert detokenizer.first_stop(context, tokens[start : start + 8]) is None
    assert counted.num_decoded < 5 * len(tokens)


@given(
    st.text("abcé", max_size=24), st.lists(st.text("abcé", min_size=1, max_size=4), min_size=1, max_size=3), st.data()
)
def test_a_look_at_new_tokens_finds_the_stop_string_of_the_whole_text(text, stops, data):
    tokens = TOKENIZER(text)["input_ids"]
    detokenizer, start, stop = Detokenizer(TOKENIZER, tuple(stops)), 0, None
    while start < len(tokens) and stop is None:
        length = data.draw(st.integers(1, 9))
        context = tokens[max(0, start - detokenizer.num_context_tokens) : start]
        count = detokenizer.first_stop(context, tokens[start : start + length])
        stop = None if count is None else start + count
        start += length
    _, count = detokenizer.final_text(tokens)
    assert (len(tokens) if stop is None else stop) == count


@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_first_stop_string_ends_the_text_at_its_token(text, stops):
    tokens = TOKENIZER(text)["input_ids"]
    cut, count = Detokenizer(TOKENIZER, tuple(stops)).final_text(tokens)
    at = min((text.find(stop) for stop in stops if stop in text), default=None)
    assert cut == (text if at is None else text[:at])
    if at is not None:
        assert any(stop in text[:count] for stop in stops)
        assert not any(stop in text[: count - 1] for stop in stops)
