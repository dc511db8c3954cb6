"""Counts of a response's text, and the functions of them that values read."""

import re
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from value_heads import FeatureSpec, LinearHead, ValueStack, features
from value_heads.features import TOKENS
from value_heads.text_counts import COUNTS, KNOTS, WIDTH, counts_of, pack, packed_counts, text_features, unpack

PIECES = ["The", "Ġtide", "Ġgoes", "Ġout", ".", "Ċ", "Ġ10", ",", None, "!", "ĠNASA", "s"]
PACKED = pack(PIECES)
STOP = PIECES.index(None)


def text_of(tokens: list[int]) -> str:
    return "".join((PIECES[token] or "").replace("Ġ", " ").replace("Ċ", "\n") for token in tokens)


def count(tokens: list[int]) -> dict[str, float]:
    return dict(zip(COUNTS, unpack(PACKED)[tokens].sum(0).tolist(), strict=True))


@given(st.lists(st.integers(0, len(PIECES) - 1)))
def test_counts_of_tokens_add_up_to_those_of_the_text(tokens: list[int]) -> None:
    text, counts = text_of(tokens), count(tokens)
    assert counts["lines"] == text.count("\n")
    assert counts["letters"] == len(re.findall("[A-Za-z]", text))
    assert counts["capitals"] == len(re.findall("[A-Z]", text))
    assert counts["digits"] == len(re.findall("[0-9]", text))
    assert counts["marks"] == len(re.findall("[.,!]", text))
    assert counts["sentences"] == len(re.findall("[.!]", text))
    assert counts["words"] == len(re.findall(" [A-Za-z0-9]", text))


def test_a_run_of_vowels_is_about_a_syllable() -> None:
    vowels = COUNTS.index("vowels")
    assert [counts_of(f"Ġ{word}")[vowels] for word in ("tide", "goes", "out", "again", "rhythm")] == [2, 1, 1, 2, 1]


def test_a_packed_vocabulary_comes_back_and_anything_else_is_refused() -> None:
    assert unpack(PACKED).tolist() == [[0.0] * len(COUNTS) if not piece else counts_of(piece) for piece in PIECES]
    for packed in ("x", PACKED[:-7], "é"):
        with pytest.raises(ValueError, match="text_counts"):
            FeatureSpec(averaged=(1,), text_counts=packed)


class Vocabulary:
    """A tokenizer of PIECES and an end token, whose spelling has letters."""

    all_special_ids: ClassVar[list[int]] = [len(PIECES)]

    def __len__(self) -> int:
        return len(PIECES) + 1

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]:
        return [[*PIECES, "<|end|>"][token] for token in ids]


def test_special_tokens_of_a_tokenizer_count_as_nothing() -> None:
    assert packed_counts(Vocabulary()) == pack([*PIECES, None])


@pytest.mark.parametrize("name", ["words", "sentences", "lines", "capitals", "digits", "marks"])
def test_any_piecewise_linear_function_of_a_count_is_linear_in_the_features(name: str) -> None:
    """The sum of all intervals, each times its length, is the count itself."""
    counts = torch.zeros(40, len(COUNTS))
    counts[:, COUNTS.index(name)] = torch.arange(40.0)
    of_count = text_features(counts).reshape(40, len(COUNTS) + 1, len(KNOTS) - 1)[:, 1 + COUNTS.index(name)]
    torch.testing.assert_close(of_count @ torch.tensor(KNOTS).float().diff(), torch.arange(40.0))


def test_ratios_are_words_a_sentence_and_letters_and_vowels_a_word() -> None:
    counts = torch.zeros(1, len(COUNTS))
    counts[0, [COUNTS.index(name) for name in ("words", "sentences", "letters", "vowels")]] = torch.tensor(
        [12.0, 3.0, 54.0, 18.0]
    )
    intervals = text_features(counts).reshape(len(COUNTS) + 1, len(KNOTS) - 1)
    numbers = intervals @ torch.tensor(KNOTS).float().diff()
    assert numbers[0] == 4
    assert numbers[1 + COUNTS.index("letters")] == 8 * 54 / 12 and numbers[1 + COUNTS.index("vowels")] == 16 * 18 / 12


def test_finished_responses_have_functions_of_the_text_of_their_own() -> None:
    """And tokens past the vocabulary, as padding, count as nothing that a value reads."""
    spec = FeatureSpec(averaged=(1,), text_counts=PACKED, stop_ids=(STOP,), ended=True, position=False)
    tokens = torch.tensor([[1, 2, 3, 4, STOP], [1, 2, 3, 4, 5]])
    read = features(spec, {1: torch.zeros(2, 5, 1), TOKENS: tokens})
    texts = torch.zeros(spec.width(1), dtype=torch.bool)
    texts[1 : 1 + WIDTH] = True
    copies = torch.zeros_like(texts)
    copies[-WIDTH:] = True
    torch.testing.assert_close(read[0, 4, texts], read[0, 3, texts])
    torch.testing.assert_close(read[0, 4, copies], read[0, 4, texts])
    assert not read[1][:, copies].any() and not read[0, :4, copies].any()


def test_stacks_whose_heads_count_other_models_tokens_are_refused() -> None:
    specs = [FeatureSpec(averaged=(1,), text_counts=pack(pieces)) for pieces in (PIECES, PIECES[:4])]
    with pytest.raises(ValueError, match="text of one model's tokens"):
        ValueStack([LinearHead(spec, torch.zeros(spec.width(2)), 0.0) for spec in specs], [1.0, 1.0])
