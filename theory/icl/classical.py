"""Classical learners (scikit-learn) trained on a prompt's examples and tested on its query."""

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
    """The share of prompts [N, l+1, d] whose query (last) is misclassified from the first ``length`` examples.

    If all examples have the same label, it is the prediction; with fewer examples than neighbours, all of them vote.
    """
    wrong = 0
    for inputs, labels in zip(x, y, strict=True):
        example_labels = labels[:length]
        if (example_labels == example_labels[0]).all():
            predicted = example_labels[0]
        else:
            learner = LEARNERS[name]()
            if isinstance(learner, KNeighborsClassifier):
                learner.set_params(n_neighbors=min(learner.n_neighbors, length))
            predicted = learner.fit(inputs[:length], example_labels).predict(inputs[-1:])[0]
        wrong += bool(predicted != labels[-1])
    return wrong / len(x)
