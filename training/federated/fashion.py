"""Fashion-MNIST as training examples, and two small models."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from training import fashion_mnist

MEAN, DEVIATION = 0.2860, 0.3530  # of the training images


class Examples(NamedTuple):
    """``images`` [n, 1, 28, 28], standardised float32; ``labels`` [n], int64 from 0 to 9."""

    images: Tensor
    labels: Tensor

    def take(self, rows: np.ndarray) -> Examples:
        picked = torch.from_numpy(rows)
        return Examples(self.images[picked], self.labels[picked])


@lru_cache(maxsize=1)
def read(folder: Path) -> dict[str, Examples]:
    """ "train" (60,000) and "test" (10,000). Raises ValueError as ``fashion_mnist.read``."""
    examples = {}
    for split in fashion_mnist.SPLITS:
        images, labels = fashion_mnist.read(folder, split)
        examples[split] = Examples(((images - MEAN) / DEVIATION)[:, None], labels)
    return examples


def mlp(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(fashion_mnist.SIDE**2, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def cnn(hidden: int) -> nn.Module:
    """Two convolutions with a stride of 2, of ``hidden``/4 and ``hidden``/2 channels."""
    narrow, wide = hidden // 4, hidden // 2
    return nn.Sequential(
        nn.Conv2d(1, narrow, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(narrow, wide, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(wide * (fashion_mnist.SIDE // 4) ** 2, 10),
    )


MODELS = {"mlp": mlp, "cnn": cnn}


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], examples: Examples, chunk: int = 2000) -> float:
    """The share of examples that ``model`` classifies correctly."""
    correct = 0
    for images, labels in zip(examples.images.split(chunk), examples.labels.split(chunk), strict=True):
        correct += int((model(images).argmax(1) == labels).sum())
    return correct / len(examples.labels)
