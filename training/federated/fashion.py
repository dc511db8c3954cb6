"""Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv:1708.07747), and two small models of it."""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.2860, 0.3530  # of the training images
SPLITS = {"train": "train", "test": "t10k"}
KINDS = {"images": (3, "idx3"), "labels": (1, "idx1")}


class Examples(NamedTuple):
    """``images`` [n, 1, 28, 28], standardised float32; ``labels`` [n], int64 from 0 to 9."""

    images: Tensor
    labels: Tensor

    def take(self, rows: np.ndarray) -> Examples:
        picked = torch.from_numpy(rows)
        return Examples(self.images[picked], self.labels[picked])


def paths(folder: Path) -> dict[str, Path]:
    """The four files by "train images" and so on. Raises ValueError if one is not there."""
    found = {
        f"{split} {kind}": folder / f"{prefix}-{kind}-{form}-ubyte.gz"
        for split, prefix in SPLITS.items()
        for kind, (_, form) in KINDS.items()
    }
    missing = [str(path) for path in found.values() if not path.is_file()]
    if missing:
        raise ValueError(
            f"Fashion-MNIST is not at {folder} ({missing[0]} is missing): on Debian, apt install "
            "dataset-fashion-mnist; elsewhere, set data= to a folder with its four .gz files"
        )
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths(folder).items()}


@lru_cache(maxsize=1)
def read(folder: Path) -> dict[str, Examples]:
    """ "train" (60,000) and "test" (10,000). Raises ValueError if they are not there, or not in the IDX format."""
    files = paths(folder)
    found = {}
    for split in SPLITS:
        images, labels = (_read_idx(files[f"{split} {kind}"], axes) for kind, (axes, _) in KINDS.items())
        scaled = (torch.from_numpy(images).float() / 255 - MEAN) / DEVIATION
        found[split] = Examples(scaled[:, None], torch.from_numpy(labels).long())
    return found


def _read_idx(path: Path, axes: int) -> np.ndarray:
    data = gzip.decompress(path.read_bytes())
    magic, *shape = struct.unpack_from(f">{axes + 1}I", data)
    if magic != 0x800 + axes or len(data) != 4 * (axes + 1) + np.prod(shape):
        raise ValueError(f"{path} is not an IDX file of bytes with {axes} axes")
    return np.frombuffer(data, np.uint8, offset=4 * (axes + 1)).reshape(shape).copy()


def mlp(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def cnn(hidden: int) -> nn.Module:
    """Two convolutions with a stride of 2, of ``hidden``/4 and ``hidden``/2 channels."""
    narrow, wide = hidden // 4, hidden // 2
    return nn.Sequential(
        nn.Conv2d(1, narrow, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(narrow, wide, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(wide * 49, 10),
    )


MODELS = {"mlp": mlp, "cnn": cnn}


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], examples: Examples, chunk: int = 2000) -> float:
    """The share that ``model`` gets right."""
    right = 0
    for images, labels in zip(examples.images.split(chunk), examples.labels.split(chunk), strict=True):
        right += int((model(images).argmax(1) == labels).sum())
    return right / len(examples.labels)
