"""Classical learners trained on a prompt's examples alone, tried on its query (scikit-learn)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

LEARNERS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: LogisticRegression(),
    "1-NN": lambda: KNeighborsClassifier(1),
    "3-NN": lambda: KNeighborsClassifier(3),
    "Gaussian SVM": lambda: SVC(kernel="rbf"),
    "linear SVM": lambda: SVC(kernel="linear"),
}


def classical_error(name: str, x: np.ndarray, y: np.ndarray, length: int) -> float:
    """Share of prompts [N, l+1, d] whose query (last) gets the wrong label of ±1 from the first ``length`` examples.

    Where all examples have one label that label is the answer; with fewer examples than neighbours, all of them vote.
    """
    wrong = 0
    for inputs, labels in zip(x, y, strict=True):
        seen = labels[:length]
        if (seen == seen[0]).all():
            guess = seen[0]
        else:
            learner = LEARNERS[name]()
            if isinstance(learner, KNeighborsClassifier):
                learner.set_params(n_neighbors=min(learner.n_neighbors, length))
            guess = learner.fit(inputs[:length], seen).predict(inputs[-1:])[0]
        wrong += guess != labels[-1]
    return wrong / len(x)
