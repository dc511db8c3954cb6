"""Graders that compare two texts: string_check and text_similarity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import sacrebleu
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import meteor_score
from pydantic import field_validator
from rapidfuzz import fuzz
from rouge_score.rouge_scorer import RougeScorer

from iro_server.graders.base import Grade, Grader, Item, Sample
from iro_server.graders.templates import MissingField, Template, render


class _Comparison(Grader):
    input: Template
    reference: Template

    @abstractmethod
    def compare(self, text: str, reference: str) -> float: ...

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        return [self._grade(sample, item) for sample, item in pairs]

    def _grade(self, sample: Sample, item: Item) -> Grade:
        scope = {"sample": sample.as_dict(), "item": item}
        try:
            text, reference = render(self.input, scope), render(self.reference, scope)
        except MissingField as missing:
            return Grade.failed(str(missing))
        return Grade.of(self.compare(text, reference))


class StringCheck(_Comparison):
    """1 or 0: equal (eq), not equal (ne), contains the reference (like), contains it in any case (ilike)."""

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "like", "ilike"]

    def compare(self, text: str, reference: str) -> float:
        match self.operation:
            case "eq":
                return float(text == reference)
            case "ne":
                return float(text != reference)
            case "like":
                return float(reference in text)
            case "ilike":
                return float(reference.casefold() in text.casefold())


Metric = Literal[
    "cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]


class TextSimilarity(_Comparison):
    """Similarity of two texts in [0, 1] by ``evaluation_metric``; all metrics run offline."""

    type: Literal["text_similarity"]
    evaluation_metric: Metric

    @field_validator("evaluation_metric")
    @classmethod
    def _offline(cls, metric: str) -> str:
        if metric == "cosine":
            raise ValueError(f"cosine needs an embedding model, which is not served here; use {', '.join(METRICS)}")
        return metric

    def compare(self, text: str, reference: str) -> float:
        return METRICS[self.evaluation_metric](text, reference)


class _NoSynonyms:
    """Stands for WordNet, which would have to be downloaded: METEOR then matches words and stems."""

    def synsets(self, word: str) -> list[object]:
        return []


def _words(text: str) -> list[str]:
    return wordpunct_tokenize(text.lower())


def _fuzzy(text: str, reference: str) -> float:
    return fuzz.ratio(text, reference) / 100


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


@cache
def _rouge_scorer(kind: str) -> RougeScorer:
    return RougeScorer([kind], use_stemmer=True)


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    **{f"rouge_{n}": _rouge(f"rouge{n}") for n in range(1, 6)},
    "rouge_l": _rouge("rougeL"),
}
