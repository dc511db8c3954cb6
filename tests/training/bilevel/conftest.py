"""Digits where Fashion-MNIST is expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.training.idx import write_idx


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in the form of Fashion-MNIST: 28 x 28 pixels, 1,500 to train on and 297 to test on."""
    folder = tmp_path_factory.mktemp("digits")
    images = np.pad(np.kron(load_digits().images, np.ones((3, 3))) * 15, ((0, 0), (2, 2), (2, 2)))
    for stem, part in (("train", slice(1500)), ("t10k", slice(1500, None))):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images[part])
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", load_digits().target[part])
    return folder
