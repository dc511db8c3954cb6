"""Fashion-MNIST (Xiao et al., arXiv:1708.07747) from its four published files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts them
SIDE = 28


class Images(NamedTuple):
    """pixels [N, 784], float32 in [0, 1]; labels [N], int64."""

    pixels: torch.Tensor
    labels: torch.Tensor


def load(folder: Path = DEBIAN, *, train: bool) -> Images:
    """The 60,000 images to train on, or the 10,000 to test on. FileNotFoundError says where to get them."""
    stem = "train" if train else "t10k"
    pixels, labels = (read_idx(folder / f"{stem}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    flat = torch.from_numpy(pixels.reshape(len(pixels), -1)).float() / 255
    return Images(flat, torch.from_numpy(labels).long())


def shrunk(images: Images, by: int) -> Images:
    """Means of squares of ``by`` by ``by`` pixels; ``by`` divides 28, or ValueError."""
    if SIDE % by:
        raise ValueError(f"pool: must divide the images' side of {SIDE} pixels, unlike {by}")
    if by == 1:
        return images
    return Images(avg_pool2d(images.pixels.view(-1, 1, SIDE, SIDE), by).flatten(1), images.labels)


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in a gzipped IDX file: two zeros, 8, the number of axes, their lengths (big-endian), bytes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not there; `apt install dataset-fashion-mnist`, or name the folder with its four .gz files"
        )
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: not an IDX file of bytes")
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", count=axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
