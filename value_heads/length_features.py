"""What a tilt reads of how long a response is: its tokens, its words, and the words of its newest sentence.

A function of these that is linear in ``length_features`` is piecewise linear in each count. Axes in tensor names: M
rows, I intervals between knots, L features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

KNOTS = (0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
NUM_LENGTH_FEATURES = 3 * (len(KNOTS) - 1)
SENTENCE_ENDS = ".!?"
NEWLINES = "\nĊ"  # the second is how byte-level tokenizers write it


class Spelling(NamedTuple):
    """Of a token: whether it has letters or digits, whether it begins with a space, whether it ends a sentence."""

    has_letters: bool
    is_spaced: bool
    ends_sentence: bool

    @classmethod
    def of(cls, piece: str, spaces: str) -> Spelling:
        """``spaces``: how the tokenizer writes a leading space."""
        letters = piece.strip(spaces + NEWLINES)
        ends = letters.endswith(tuple(SENTENCE_ENDS)) or any(newline in piece for newline in NEWLINES)
        return cls(any(map(str.isalnum, letters)), piece.startswith(tuple(spaces)), ends)


class Lengths(NamedTuple):
    """Of a response so far. ``sentence``: words since its last sentence ended. ``in_word``: whether its last token has
    letters, so that one without a space goes on with the same word."""

    tokens: int = 0
    words: int = 0
    sentence: int = 0
    in_word: bool = False

    def followed_by(self, token: Spelling) -> Lengths:
        starts = token.has_letters and (token.is_spaced or not self.in_word)
        sentence = 0 if token.ends_sentence else self.sentence + starts
        return Lengths(self.tokens + 1, self.words + starts, sentence, token.has_letters)


def length_features(lengths: Sequence[Lengths]) -> Tensor:
    """[M, L] float32 in [0, 1]: of each count and each interval between two knots, the share that the count has
    passed."""
    counts_M13 = torch.tensor([each[:3] for each in lengths], dtype=torch.float32).reshape(-1, 1, 3)
    low_I1, high_I1 = torch.tensor(KNOTS[:-1])[:, None], torch.tensor(KNOTS[1:])[:, None]
    return ((counts_M13 - low_I1) / (high_I1 - low_I1)).clamp(0, 1).flatten(1)
