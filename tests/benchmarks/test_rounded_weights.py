"""Rounding of weights, and the shares that are reported."""

from __future__ import annotations

import asyncio

import pytest
import torch

from benchmarks.rounded_weights import METHODS, PRECISIONS, by_precision, rounded, rounded_weights, summary
from iro_server.engines.base import HEAD_STATE, Sampling
from iro_server.engines.embedded import EmbeddedEngine


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


def prompt_states(engine: EmbeddedEngine) -> torch.Tensor:
    """The state that the first token is drawn from."""

    async def states() -> torch.Tensor:
        session = await engine.open([1, 2, 3], Sampling(seed=0), layers=(HEAD_STATE,))
        chunk = await session.extend([0], 1, 1)
        session.close()
        return chunk.hidden[HEAD_STATE]

    return asyncio.run(states())


def test_the_engine_computes_with_rounded_weights_inside_the_context_alone(small_engine: EmbeddedEngine) -> None:
    before, head = prompt_states(small_engine), small_engine.frozen.head_weight
    with rounded_weights(small_engine, "float32"):
        assert torch.equal(prompt_states(small_engine), before)
    with rounded_weights(small_engine, "8 bits"):
        change = (prompt_states(small_engine) - before).norm() / before.norm()
        assert 1e-4 < change < 0.5
        linear = next(module for module in small_engine.frozen.layers.modules() if isinstance(module, torch.nn.Linear))
        x = torch.randn(3, linear.in_features, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(linear(x), x @ linear.weight.T, atol=1e-4, rtol=1e-4)
        assert torch.equal(small_engine.frozen.head_weight, head)
    assert torch.equal(prompt_states(small_engine), before)


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
