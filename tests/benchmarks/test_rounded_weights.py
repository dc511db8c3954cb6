"""Rounding of weights, and the shares that are reported."""

from __future__ import annotations

import pytest
import torch

from benchmarks.rounded_weights import METHODS, PRECISIONS, by_precision, rounded, summary


@pytest.mark.parametrize(("bits", "group"), [PRECISIONS["8 bits"], PRECISIONS["4 bits"]])
def test_weights_are_the_nearest_of_a_few_levels_for_each_group(bits: int, group: int | None) -> None:
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    result = rounded(weight, bits, group)
    groups, new = weight.view(6, -1, group or 128), result.view(6, -1, group or 128)
    steps = groups.abs().amax(2, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((new - groups).abs() <= steps / 2 + 1e-6).all()
    for row in new.reshape(-1, new.shape[2]):
        assert len(row.unique()) <= 2**bits - 1
    assert torch.equal(result[2], weight[2])
    assert torch.allclose(rounded(result, bits, group), result)


def test_shares_are_of_the_gain_on_float32_weights() -> None:
    rewards = {
        "float32": ([0.0, 1.0], [2.0, 3.0], [4.0, 5.0]),
        "8 bits": ([0.0, 1.0], [2.0, 3.0], [4.0, 5.0]),
        "4 bits": ([1.0, 2.0], [2.0, 3.0], [3.0, 4.0]),
    }
    rows = [
        {"task": "brevity", "precision": name, "rewards": dict(zip(METHODS, values, strict=True))}
        for name, values in rewards.items()
    ]
    cells = summary(rows)
    assert [[part["mean"] for part in cell["shares"].values()] for cell in cells] == [[1, 1], [1, 1], [0.5, 0.5]]
    assert "| brevity | 4 bits | 1.50 [" in by_precision({"cells": cells})
