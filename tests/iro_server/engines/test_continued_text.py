"""Texts that are tokenised piece by piece: what the pieces say together, no tokenizer adds to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from iro_server.engines.continued_text import continued_ids
from iro_server.engines.prepare import prepare_model
from iro_server.engines.quoted_tokens import literal_ids
from tests.iro_server.api.byte_engine import byte_tokenizer

WORDS = "the cat sat on the mat, and a dog saw it\n"


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """As Llama 2's: a space before each text ("first", "always"), or one that a normalizer writes ("legacy")."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<unk>", "<s>", "</s>", *bytes_of])
    tokenizer.train_from_iterator([WORDS] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


SCHEMES = ("first", "always", "legacy")
TOKENIZERS = {scheme: sentencepiece(scheme) for scheme in SCHEMES} | {
    "bytes": byte_tokenizer(),
    "default model": AutoTokenizer.from_pretrained(prepare_model()),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(pieces=st.lists(st.text(st.sampled_from(f"{WORDS}.é|0"), max_size=6), max_size=5))
def test_pieces_say_together_what_their_texts_do(name: str, pieces: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    start = list(tokenizer("on:")["input_ids"])
    ids = [*start, *(id for piece in pieces for id in continued_ids(tokenizer, piece))]
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer.decode(start) + "".join(pieces)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tokenizer_that_writes_a_space_before_a_text_is_one_that_needs_this(scheme: str) -> None:
    tokenizer = TOKENIZERS[scheme]
    cut = [id for piece in ("the c", "at") for id in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    assert tokenizer.decode(cut) == "the c at"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_spelled_special_token_and_what_surrounds_it_are_text(scheme: str) -> None:
    tokenizer = TOKENIZERS[scheme]
    ids = literal_ids(tokenizer, "the </s>cat<s> sat")
    assert tokenizer.decode([*tokenizer("on", add_special_tokens=False)["input_ids"], *ids]) == "onthe </s>cat<s> sat"
    assert not set(ids) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
