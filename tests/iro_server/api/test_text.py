from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from iro_server.api.text import Detokenizer
from tests.iro_server.api.byte_engine import byte_tokenizer

TOKENIZER = byte_tokenizer()
BYTE_NAMES = bytes_to_unicode()


@given(st.binary(max_size=30), st.lists(st.text("abé", min_size=1, max_size=3), max_size=2))
def test_settled_text_only_grows_towards_the_whole(data, stops):
    tokens = [TOKENIZER.convert_tokens_to_ids(BYTE_NAMES[byte]) for byte in data]
    detokenizer = Detokenizer(TOKENIZER, tuple(stops))
    whole, _ = detokenizer.final_text(tokens)
    settled = [detokenizer.settled(tokens[:n]) for n in range(len(tokens) + 1)]
    assert all(later.startswith(earlier) for earlier, later in zip(settled, [*settled[1:], whole], strict=True))


@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_first_stop_string_ends_the_text_at_its_token(text, stops):
    tokens = TOKENIZER(text)["input_ids"]
    cut, count = Detokenizer(TOKENIZER, tuple(stops)).final_text(tokens)
    at = min((text.find(stop) for stop in stops if stop in text), default=None)
    assert cut == (text if at is None else text[:at])
    if at is not None:
        assert any(stop in text[:count] for stop in stops)
        assert not any(stop in text[: count - 1] for stop in stops)
