"""Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv:1708.07747) from its four published files."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from training.provenance import FilesOf

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts them
SIDE, CLASSES = 28, 10
SPLITS = {"train": "train", "test": "t10k"}
KINDS = {"images": (3, "idx3"), "labels": (1, "idx1")}
FILES = {
    f"{split} {kind}": f"{prefix}-{kind}-{form}-ubyte.gz"
    for split, prefix in SPLITS.items()
    for kind, (_, form) in KINDS.items()
}
DataFolder = Annotated[Path, FilesOf(tuple(FILES.values()))]


def paths(folder: Path) -> dict[str, Path]:
    """The four files by "train images" and so on. Raises ValueError if one is not there."""
    files = {name: folder / file for name, file in FILES.items()}
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

    Raises ValueError if they are not there, or not such images and labels in the IDX format.
    """
    image_file, label_file = (paths(folder)[f"{split} {kind}"] for kind in KINDS)
    images, labels = _read_idx(image_file, 3), _read_idx(label_file, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"{image_file} has images of {images.shape[1]} x {images.shape[2]}, not of {SIDE} x {SIDE}")
    if not len(labels) or labels.max() >= CLASSES:
        raise ValueError(f"{label_file} must have labels from 0 to {CLASSES - 1}")
    if len(images) != len(labels):
        raise ValueError(f"{image_file} has {len(images)} images, for {len(labels)} labels in {label_file.name}")
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels).long()


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Two zeros, 8 for bytes, the number of axes, their lengths (big-endian), and the bytes."""
    compressed = path.read_bytes()
    try:
        data = gzip.decompress(compressed)
        magic, *shape = struct.unpack_from(f">{axes + 1}I", data)
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path} is not an IDX file of bytes with {axes} axes: {error}") from error
    if magic != 0x800 + axes or len(data) != 4 * (axes + 1) + np.prod(shape):
        raise ValueError(f"{path} is not an IDX file of bytes with {axes} axes")
    return np.frombuffer(data, np.uint8, offset=4 * (axes + 1)).reshape(shape).copy()
