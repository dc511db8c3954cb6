"""Value functions by LoRA, for the modules that test them."""

from __future__ import annotations

import pytest
import torch

from tests.value_heads.lora import randomise, write_model
from value_heads import LoraBackbone, LoraValues


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="module")
def values(model_dir):
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4)
    for _ in range(3):
        randomise(backbone, backbone.add_iteration())
    return LoraValues(backbone, [1.0, 2.0, 2.5])


@pytest.fixture(scope="module")
def exact(model_dir):
    """In float64, where what is computed alike differs by nothing that can be seen."""
    return in_float64(model_dir)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """In float64, on a model that attends to three tokens."""
    return in_float64(write_model(tmp_path_factory.mktemp("windowed"), seed=0, sliding_window=3))


def in_float64(model_dir) -> LoraValues:
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4, dtype=torch.float64)
    for _ in range(3):
        randomise(backbone, backbone.add_iteration())
    return LoraValues(backbone, [1.0, 2.0, 2.5])
