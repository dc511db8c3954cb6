"""What a value function reads of a response's text: counts of words, sentences, lines and kinds of characters.

They add over tokens, so that a search carries their sums. Axes in tensor names: V vocabulary, C counts, F features.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from value_heads import prompt_features
from value_heads.length_features import NEWLINES, SENTENCE_ENDS
from value_heads.prompt_features import WORD_START


class Tokenizer(prompt_features.Tokenizer, Protocol):
    @property
    def all_special_ids(self) -> list[int]: ...
    def __hash__(self) -> int: ...


COUNTS = ("words", "sentences", "lines", "letters", "vowels", "capitals", "digits", "marks")
"""words: tokens that begin with a space and have letters or digits; sentences: tokens that end in . ! or ?; lines: line
breaks; vowels: runs of vowels, about one a syllable of English; marks: characters that are none of these."""
KNOTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 192, 256, 512, 1024)
"""Counts, plus one, between which the features are linear."""
PER_WORD = {"letters": 8, "vowels": 16}  # ratios to words, so often that knots tell them apart
VOWELS = "aeiouyAEIOUY"
WIDTH = (len(COUNTS) + 1) * (len(KNOTS) - 1)


def counts_of(piece: str) -> list[int]:
    """COUNTS of one token, as the tokenizer spells it."""
    text = piece.strip(WORD_START + NEWLINES)
    letters, digits = sum(map(str.isalpha, text)), sum(map(str.isdigit, text))
    vowels = sum(char in VOWELS and before not in VOWELS for before, char in pairwise(" " + text))
    return [
        int(piece.startswith(tuple(WORD_START)) and letters + digits > 0),
        int(text.endswith(tuple(SENTENCE_ENDS))),
        sum(piece.count(newline) for newline in NEWLINES),
        letters,
        vowels,
        sum(map(str.isupper, text)),
        digits,
        len(text) - letters - digits,
    ]


@lru_cache(maxsize=8)
def packed_counts(tokenizer: Tokenizer) -> str:
    """The counts of a tokenizer's tokens; of its special ones none."""
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return pack([None if token in special else piece for token, piece in enumerate(pieces)])


def pack(pieces: Sequence[str | None]) -> str:
    """The counts of a vocabulary's tokens in the order of their ids, as a string; None: a token without text."""
    counts_VC = [counts_of(piece) if piece else [0] * len(COUNTS) for piece in pieces]
    table = torch.tensor(counts_VC).clamp_max(255).to(torch.uint8)
    return base64.b85encode(zlib.compress(table.T.contiguous().numpy().tobytes(), 9)).decode()


@lru_cache(maxsize=8)
def unpack(packed: str) -> Tensor:
    """[V, C] float32, of a string by ``pack``. ValueError where it is none."""
    try:
        flat = torch.frombuffer(bytearray(zlib.decompress(base64.b85decode(packed))), dtype=torch.uint8)
        return flat.reshape(len(COUNTS), -1).T.float().contiguous()
    except (ValueError, RuntimeError, zlib.error) as error:
        raise ValueError(f"text_counts: not what text_counts.pack writes: {error}") from error


def text_features(counts: Tensor) -> Tensor:
    """[..., C] -> [..., F]: of words a sentence, and of each count (letters and vowels: a word), the share of each
    interval between two knots that it has passed. Linear functions of them are piecewise linear in each."""
    words, sentences = counts[..., 0], counts[..., 1]
    columns = [words / sentences.clamp_min(1)]
    for name, count in zip(COUNTS, counts.unbind(-1), strict=True):
        columns.append(count * PER_WORD[name] / words.clamp_min(1) if name in PER_WORD else count)
    values = torch.stack(columns, -1)[..., None] + 1
    knots = torch.tensor(KNOTS, dtype=values.dtype, device=values.device)
    return ((values - knots[:-1]) / knots.diff()).clamp(0, 1).flatten(-2)
