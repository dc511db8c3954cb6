"""The demo's reward: a sentiment classifier, carried as weights in the source of a python grader."""

from __future__ import annotations

import array
import base64
import json
import os
import zlib

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from iro_server.cli.demo.data import Reviews, imdb_splits
from iro_server.engines.prepare import iro_home

_GRADER = '''"""{summary}"""

import array, base64, collections, json, math, re, zlib

def _unpack(text):
    return zlib.decompress(base64.b85decode(text))

WORDS = json.loads(_unpack("{words}"))
IDF = array.array("f", _unpack("{idf}"))
WEIGHT = array.array("f", _unpack("{weight}"))
TERMS = dict(zip(WORDS, zip(IDF, WEIGHT)))
BIAS = {bias!r}

def grade(sample, item):
    logit = square = 0.0
    for word, n in collections.Counter(re.findall(r"\\b\\w\\w+\\b", sample["output_text"].lower())).items():
        if word in TERMS:
            idf, weight = TERMS[word]
            x = (1 + math.log(n)) * idf
            logit += x * weight
            square += x * x
    return BIAS + (logit / math.sqrt(square) if square else 0.0)
'''


def fit_classifier(reviews: Reviews) -> tuple[TfidfVectorizer, LogisticRegression]:
    """TF-IDF of single words, then logistic regression."""
    vectorizer = TfidfVectorizer(max_features=20_000, sublinear_tf=True, min_df=3)
    features = vectorizer.fit_transform(reviews.texts)
    return vectorizer, LogisticRegression(C=3.0, max_iter=500).fit(features, reviews.labels)


def grader_source(vectorizer: TfidfVectorizer, classifier: LogisticRegression, summary: str) -> str:
    """A python grader, on the standard library alone, that returns the classifier's logit for ``output_text``."""
    return _GRADER.format(
        summary=summary,
        words=_pack(json.dumps(vectorizer.get_feature_names_out().tolist()).encode()),
        idf=_pack(array.array("f", vectorizer.idf_).tobytes()),
        weight=_pack(array.array("f", classifier.coef_[0]).tobytes()),
        bias=float(classifier.intercept_[0]),
    )


def _pack(data: bytes) -> str:
    # Base 85 has no quote and no backslash, so that it stands in a string as it is.
    return base64.b85encode(zlib.compress(data, 9)).decode()


def sentiment_grader_source() -> str:
    """The demo's grader, fitted the first time and then kept under ``iro_home()``. Its docstring tells its accuracy.

    Raises MissingPackage.
    """
    path = iro_home() / "demo" / "sentiment_grader.py"
    if not path.exists():
        splits = imdb_splits()
        vectorizer, classifier = fit_classifier(splits.grader)
        held_out = splits.prompts
        right = np.mean(classifier.predict(vectorizer.transform(held_out.texts)) == held_out.labels)
        summary = f"Sentiment of the text, as a logit. {right:.1%} right on {len(held_out.texts):,} held-out reviews."
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_stem(f"{path.stem}-{os.getpid()}")  # whole or not at all, whoever else writes it
        partial.write_text(grader_source(vectorizer, classifier, summary))
        os.replace(partial, path)
    return path.read_text()
