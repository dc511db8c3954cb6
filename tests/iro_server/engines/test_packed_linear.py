"""Packed products are those of the layers; they are left out where memory does not hold the copies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.packed_linear import MOST_MEMORY, operators_work, packed_forwards
from iro_server.engines.prepare import prepare_model

SIZES = st.integers(1, 80)


def test_this_build_of_torch_has_the_operators():
    assert operators_work()


@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans())
def test_products_are_those_of_the_layer(rows, width, height, has_bias, transposed):
    torch.manual_seed(rows)
    linear = nn.Linear(width, height, bias=has_bias).requires_grad_(False)
    x = torch.randn(width, rows).T if transposed else torch.randn(rows, width)
    packed = packed_forwards(linear, available=2**40)[linear]
    torch.testing.assert_close(packed(x), linear(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed(x[None]), linear(x[None]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("room", [0.9, 1.1])
def test_copies_take_their_share_of_memory_at_most(room):
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    size = sum(layer.weight.nbytes for layer in model)
    assert len(packed_forwards(model, available=round(room * size / MOST_MEMORY))) == (2 if room > 1 else 0)


def test_layers_in_another_data_type_are_left_alone():
    assert packed_forwards(nn.Linear(8, 8, dtype=torch.bfloat16), available=2**40) == {}


@torch.no_grad()
def test_a_packed_model_has_the_logits_of_the_model():
    frozen = FrozenModel(prepare_model(), "cpu")
    ids = torch.randint(0, 1000, (1, 24), generator=torch.Generator().manual_seed(0))
    with frozen.reference_forward() as model:
        expected = model(input_ids=ids).logits
    frozen.pack_weights()
    assert len(frozen._packed) == 7 * len(frozen.layers) + 1  # and the output head
    with frozen.reference_forward() as model:
        torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=0, rtol=0)
    states = frozen.decoder.norm(torch.randn(5, frozen.head_weight.shape[1]))
    torch.testing.assert_close(frozen.logits(states), states @ frozen.head_weight.T, atol=1e-3, rtol=1e-4)
