"""Similarity of two texts, in [0, 1], by the metrics that need no model.

nltk, which loads scikit-learn, is imported where a metric first needs it: two seconds of CPU time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import sacrebleu
from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from iro_server.concurrency.worker_processes import in_worker_process
from iro_server.graders.words import StemmedWords, spaced

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

SHORT = 4000  # characters of two texts that are compared in milliseconds


def similarity(metric: str, text: str, reference: str) -> float:
    """By a metric of METRICS. Long texts, of 100 KB in up to half a second, are compared in a worker process.

    Raises TimeoutError, MemoryError and WorkerKilled, as ``in_worker_process`` does.
    """
    if len(text) + len(reference) <= SHORT:
        return METRICS[metric](text, reference)
    return in_worker_process(_similarity, metric, text, reference, load=partial(_load, metric))


def _load(metric: str) -> None:
    """Import what the metric imports where it first needs it."""
    METRICS[metric]("a", "a")


def _similarity(metric: str, text: str, reference: str) -> float:
    return METRICS[metric](text, reference)


class _NoSynonyms:
    """Stands for WordNet, which would have to be downloaded: METEOR then matches words and stems."""

    def synsets(self, word: str) -> list[object]:
        return []


def _words(text: str) -> list[str]:
    from nltk.tokenize import wordpunct_tokenize

    return wordpunct_tokenize(spaced(text.lower()))


def _fuzzy(text: str, reference: str) -> float:
    return fuzz.ratio(text, reference) / 100


def _bleu(text: str, reference: str) -> float:
    return min(sacrebleu.sentence_bleu(spaced(text), [spaced(reference)]).score / 100, 1.0)


def _gleu(text: str, reference: str) -> float:
    from nltk.translate.gleu_score import sentence_gleu

    return float(sentence_gleu([_words(reference)], _words(text)))


def _meteor(text: str, reference: str) -> float:
    from nltk.translate.meteor_score import meteor_score

    return float(meteor_score([_words(reference)], _words(text), wordnet=_NoSynonyms()))


def _rouge(kind: str) -> Callable[[str, str], float]:
    def f_measure(text: str, reference: str) -> float:
        return float(_rouge_scorer(kind).score(reference, text)[kind].fmeasure)

    return f_measure


def _rouge_l(text: str, reference: str) -> float:
    """As rouge_score has it, whose table of all pairs of words takes hours and gigabytes for 100 KB."""
    from rouge_score.scoring import fmeasure

    words, reference_words = _rouge_tokenizer().tokenize(text), _rouge_tokenizer().tokenize(reference)
    if not words or not reference_words:
        return 0.0
    common = LCSseq.similarity(words, reference_words)
    return float(fmeasure(common / len(words), common / len(reference_words)))


@cache
def _rouge_scorer(kind: str) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], tokenizer=_rouge_tokenizer())


@cache
def _rouge_tokenizer() -> StemmedWords:
    from nltk.stem.porter import PorterStemmer

    return StemmedWords(PorterStemmer())


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    **{f"rouge_{n}": _rouge(f"rouge{n}") for n in range(1, 6)},
    "rouge_l": _rouge_l,
}
