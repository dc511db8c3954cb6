"""Fashion-MNIST's files, and the models of it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.idx import write_idx
from training.fashion_mnist import FOLDER, KINDS, SPLITS, digests
from training.federated.experiment import Examples, accuracy
from training.federated.fashion import MODELS, read


def write(folder: Path, count: int = 4) -> None:
    rng = np.random.default_rng(0)
    for prefix in SPLITS.values():
        for kind, (axes, form) in KINDS.items():
            shape = (count, 28, 28)[:axes]
            write_idx(folder / f"{prefix}-{kind}-{form}-ubyte.gz", rng.integers(0, 10, shape))


def test_a_folder_without_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train-images.*apt install dataset-fashion-mnist; elsewhere, set data="):
        read(tmp_path)
    with pytest.raises(ValueError, match="is missing"):
        digests(tmp_path)


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: b"\0\0\x08\x02" + data[4:]])
def test_files_of_another_format_are_refused(tmp_path: Path, harm) -> None:
    write(tmp_path)
    assert read(tmp_path)["test"].inputs.shape == (4, 1, 28, 28)
    read.cache_clear()
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(harm(gzip.decompress(path.read_bytes()))))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is not an IDX file of bytes with 3 axes"):
        read(tmp_path)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="apt install dataset-fashion-mnist")
def test_the_real_images_are_standardised_and_the_classes_even() -> None:
    splits = read(FOLDER)
    assert {name: len(split.labels) for name, split in splits.items()} == {"train": 60_000, "test": 10_000}
    assert np.bincount(splits["train"].labels).tolist() == [6000] * 10
    deviation, mean = torch.std_mean(splits["train"].inputs)
    assert abs(mean) < 1e-3 and abs(deviation - 1) < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_is_the_share_of_right_answers_however_it_is_cut(name: str) -> None:
    torch.manual_seed(0)
    model, images = MODELS[name](8), torch.randn(30, 1, 28, 28)
    predicted = model(images).argmax(1)
    labels = torch.where(torch.arange(30) < 12, predicted, (predicted + 1) % 10)
    for chunk in (7, 30, 100):
        assert accuracy(model, Examples(images, labels), chunk) == 0.4
