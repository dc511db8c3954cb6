"""Words of texts in any script, for the metrics that compare words."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Protocol

_UNSPACED_SCRIPTS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # iteration marks, Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_UNSPACED = re.compile(f"[{_UNSPACED_SCRIPTS}]")
LONGEST_UNSTEMMED = 3  # characters, as in rouge_score


class Stemmer(Protocol):
    def stem(self, word: str) -> str: ...


def spaced(text: str) -> str:
    """The text with a space on either side of each character of a script that separates no words: each is a word."""
    return _UNSPACED.sub(r" \g<0> ", text)


@dataclass(frozen=True)
class StemmedWords:
    """A tokenizer for rouge_score, whose own keeps the letters a to z alone. Words of ASCII texts are the same."""

    stemmer: Stemmer

    def tokenize(self, text: str) -> list[str]:
        separated = "".join(char if _is_of_word(char) else " " for char in spaced(text.lower()))
        return [self.stemmer.stem(word) if len(word) > LONGEST_UNSTEMMED else word for word in separated.split()]


def _is_of_word(char: str) -> bool:
    """Letters, digits and combining marks, such as vowel signs."""
    return char.isalnum() or unicodedata.category(char).startswith("M")
