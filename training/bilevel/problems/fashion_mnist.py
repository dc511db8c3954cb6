"""Fashion-MNIST as vectors, at full or reduced size."""

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
    """The 60,000 training images or the 10,000 test images. Raises ValueError as ``read``."""
    images, labels = read(folder, "train" if train else "test")
    return Images(images.flatten(1), labels)


def shrunk(images: Images, pool: int) -> Images:
    """Means of squares of ``pool`` by ``pool`` pixels. Raises ValueError if ``pool`` does not divide 28."""
    if SIDE % pool:
        raise ValueError(f"pool: must divide the images' side of {SIDE} pixels, unlike {pool}")
    if pool == 1:
        return images
    return Images(avg_pool2d(images.pixels.view(-1, 1, SIDE, SIDE), pool).flatten(1), images.labels)


def split_for_tuning(images: Images) -> tuple[Images, Images]:
    """The first five sixths of training images, for the agents, and the others, by which step sizes are chosen."""
    cut = len(images.labels) * 5 // 6
    first, last = (Images(images.pixels[part], images.labels[part]) for part in (slice(cut), slice(cut, None)))
    return first, last
