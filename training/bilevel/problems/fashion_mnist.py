"""Fashion-MNIST as vectors, and smaller images of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import avg_pool2d

from training.fashion_mnist import FOLDER, SIDE, read


class Images(NamedTuple):
    """pixels [N, 784], float32 in [0, 1]; labels [N], int64."""

    pixels: torch.Tensor
    labels: torch.Tensor


def load(folder: Path = FOLDER, *, train: bool) -> Images:
    """The 60,000 images to train on, or the 10,000 to test on. Raises ValueError as ``read``."""
    images, labels = read(folder, "train" if train else "test")
    return Images(images.flatten(1), labels)


def shrunk(images: Images, by: int) -> Images:
    """Means of squares of ``by`` by ``by`` pixels; ``by`` divides 28, or ValueError."""
    if SIDE % by:
        raise ValueError(f"pool: must divide the images' side of {SIDE} pixels, unlike {by}")
    if by == 1:
        return images
    return Images(avg_pool2d(images.pixels.view(-1, 1, SIDE, SIDE), by).flatten(1), images.labels)
