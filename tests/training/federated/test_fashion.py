"""Fashion-MNIST's files, and the models of it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.idx import write_idx
from training.fashion_mnist import FILES, FOLDER, digests
from training.federated.experiment import Examples, accuracy
from training.federated.fashion import MODELS, read


def write(folder: Path, images: int = 4, labels: int = 4, side: int = 28, classes: int = 10) -> None:
    for name, file in FILES.items():
        values = np.zeros((images, side, side)) if "images" in name else np.arange(labels) % classes
        write_idx(folder / file, values)


def test_a_folder_without_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train-images.*apt install dataset-fashion-mnist; elsewhere, set data="):
        read(tmp_path)
    with pytest.raises(ValueError, match="is missing"):
        digests(tmp_path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: gzip.compress(gzip.decompress(data)[:-1]),
        lambda data: gzip.compress(b"\0\0\x08\x02" + gzip.decompress(data)[4:]),
        lambda data: gzip.compress(b"\0\0"),
        lambda data: data[:-20],  # a download that was cut short
        lambda data: data[:20] + b"\xff" * 20 + data[40:],
        lambda data: b"<html>404</html>",
        lambda data: gzip.decompress(data),
    ],
)
def test_files_of_another_format_are_refused(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    write(tmp_path)
    assert read(tmp_path)["test"].inputs.shape == (4, 1, 28, 28)
    read.cache_clear()
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is not an IDX file of bytes with 3 axes"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"images": 6}, r"train-images.* has 6 images, for 4 labels in train-labels"),
        ({"labels": 6}, r"train-images.* has 4 images, for 6 labels in train-labels"),
        ({"side": 32}, r"train-images.* has images of 32 x 32, not of 28 x 28"),
        ({"images": 47, "labels": 47, "classes": 47}, r"train-labels.* must have labels from 0 to 9"),
        ({"images": 0, "labels": 0}, r"train-labels.* must have labels from 0 to 9"),
    ],
)
def test_images_and_labels_of_another_data_set_are_refused(tmp_path: Path, options: dict, reason: str) -> None:
    write(tmp_path, **options)
    with pytest.raises(ValueError, match=reason):
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
