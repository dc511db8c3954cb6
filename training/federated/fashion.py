"""Fashion-MNIST as a federated task, and two small models."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import nn

from training import fashion_mnist
from training.fashion_mnist import FOLDER, DataFolder
from training.federated.experiment import SPLIT, Examples, FederatedTask, Splits
from training.run import rng_of

MEAN, DEVIATION = 0.2860, 0.3530  # of the training images


@lru_cache(maxsize=1)
def read(folder: Path) -> dict[str, Examples]:
    """ "train" (60,000) and "test" (10,000): standardised images [n, 1, 28, 28], labels 0 to 9.

    Raises ValueError as ``fashion_mnist.read``.
    """
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


class FashionTask(FederatedTask):
    """A small network on Fashion-MNIST."""

    data: DataFolder = Field(FOLDER, description="A folder with Fashion-MNIST's four files.")
    model: Literal["mlp", "cnn"] = Field("mlp", description="The network.")
    hidden: int = Field(64, ge=4, description="Width of the network.")
    development: int = Field(
        5000, ge=100, le=50_000, description="Training examples that no client has, to select steps."
    )

    def network(self) -> nn.Module:
        return MODELS[self.model](self.hidden)

    def splits(self) -> Splits:
        return _splits(self.data, self.development)


@lru_cache(maxsize=1)
def _splits(folder: Path, development: int) -> Splits:
    """Training and development examples are split by one shuffle for all seeds."""
    splits = read(folder)
    rows = rng_of(0, SPLIT).permutation(len(splits["train"].labels))
    parts = {"development": rows[:development], "train": rows[development:]}
    return {name: splits["train"].take(part) for name, part in parts.items()} | {"test": splits["test"]}
