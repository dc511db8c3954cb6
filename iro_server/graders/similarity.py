"""Similarity of two texts, in [0, 1], by the metrics that need no model.

Texts of 100 KB take up to half a second. Fuzzy match and the longest common subsequence are computed by rapidfuzz's
cdist, which releases the interpreter's lock; the others are Python. No event loop waits for them, if few run at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import sacrebleu
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import meteor_score
from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer

_CONCURRENT = threading.BoundedSemaphore(2)  # computations in this process


def similarity(metric: str, text: str, reference: str) -> float:
    """By a metric of METRICS. Waits while others are computed."""
    with _CONCURRENT:
        return METRICS[metric](text, reference)


class _NoSynonyms:
    """Stands for WordNet, which would have to be downloaded: METEOR then matches words and stems."""

    def synsets(self, word: str) -> list[object]:
        return []


def _words(text: str) -> list[str]:
    return wordpunct_tokenize(text.lower())


def _fuzzy(text: str, reference: str) -> float:
    return _scored(text, reference, fuzz.ratio) / 100


def _bleu(text: str, reference: str) -> float:
    return min(sacrebleu.sentence_bleu(text, [reference]).score / 100, 1.0)


def _gleu(text: str, reference: str) -> float:
    return float(sentence_gleu([_words(reference)], _words(text)))


def _meteor(text: str, reference: str) -> float:
    return float(meteor_score([_words(reference)], _words(text), wordnet=_NoSynonyms()))


def _rouge(kind: str) -> Callable[[str, str], float]:
    def f_measure(text: str, reference: str) -> float:
        return float(_rouge_scorer(kind).score(reference, text)[kind].fmeasure)

    return f_measure


def _rouge_l(text: str, reference: str) -> float:
    """As rouge_score has it, whose table of all pairs of words takes hours and gigabytes for 100 KB."""
    words, reference_words = (_rouge_tokenizer().tokenize(each) for each in (text, reference))
    if not words or not reference_words:
        return 0.0
    number = {word: i for i, word in enumerate({*words, *reference_words})}
    common = _scored([number[word] for word in words], [number[word] for word in reference_words], LCSseq.similarity)
    return float(fmeasure(common / len(words), common / len(reference_words)))


def _scored(left: Any, right: Any, scorer: Any) -> float:
    return float(cdist([left], [right], scorer=scorer, dtype=np.float64)[0, 0])


@cache
def _rouge_scorer(kind: str) -> RougeScorer:
    return RougeScorer([kind], use_stemmer=True)


@cache
def _rouge_tokenizer() -> DefaultTokenizer:
    return DefaultTokenizer(use_stemmer=True)


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    **{f"rouge_{n}": _rouge(f"rouge{n}") for n in range(1, 6)},
    "rouge_l": _rouge_l,
}
