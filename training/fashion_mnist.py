"""Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv:1708.07747) from its four published files."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts them
SIDE = 28
SPLITS = {"train": "train", "test": "t10k"}
KINDS = {"images": (3, "idx3"), "labels": (1, "idx1")}


def paths(folder: Path) -> dict[str, Path]:
    """The four files by "train images" and so on. Raises ValueError if one is not there."""
    files = {
        f"{split} {kind}": folder / f"{prefix}-{kind}-{form}-ubyte.gz"
        for split, prefix in SPLITS.items()
        for kind, (_, form) in KINDS.items()
    }
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise ValueError(
            f"Fashion-MNIST is not at {folder} ({missing[0]} is missing): on Debian, apt install "
            "dataset-fashion-mnist; elsewhere, set data= to a folder with its four .gz files"
        )
    return files


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file."""
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths(folder).items()}


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images [n, 28, 28], float32 in [0, 1], and labels [n], int64 from 0 to 9, of "train" (60,000) or "test" (10,000).

    Raises ValueError if they are not there, or not in the IDX format.
    """
    files = paths(folder)
    images, labels = (_read_idx(files[f"{split} {kind}"], axes) for kind, (axes, _) in KINDS.items())
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Two zeros, 8 for bytes, the number of axes, their lengths (big-endian), and the bytes."""
    data = gzip.decompress(path.read_bytes())
    magic, *shape = struct.unpack_from(f">{axes + 1}I", data)
    if magic != 0x800 + axes or len(data) != 4 * (axes + 1) + np.prod(shape):
        raise ValueError(f"{path} is not an IDX file of bytes with {axes} axes")
    return np.frombuffer(data, np.uint8, offset=4 * (axes + 1)).reshape(shape).copy()
