"""Packed products are those of the layers; they are left out where memory does not hold the copies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from iro_server.engines import packed_linear
from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.packed_linear import MOST_MEMORY, operators_work, packed_forwards
from iro_server.engines.prepare import prepare_model

SIZES = st.integers(1, 80)
needs_bfloat16 = pytest.mark.skipif(not operators_work(torch.bfloat16), reason="this CPU has no products in bfloat16")


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


@needs_bfloat16
@settings(deadline=None)
@given(SIZES, SIZES, SIZES, st.booleans())
def test_products_in_bfloat16_are_rounded_at_their_factors_and_their_results(rows, width, height, has_bias):
    torch.manual_seed(rows)
    linear = nn.Linear(width, height, bias=has_bias).requires_grad_(False)
    rounded = linear.bfloat16().float()
    x = torch.randn(rows, width)
    product = packed_forwards(rounded, 2**40, torch.bfloat16)[rounded](x)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, rounded(x.bfloat16().float()), atol=1e-4, rtol=2**-8)


@pytest.mark.parametrize("products", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("width, height", [(576, 192), (576, 1536), (1536, 576)])
def test_a_rows_product_is_the_same_to_the_bit_alone_and_among_others(products, width, height):
    linear = nn.Linear(width, height, bias=False).requires_grad_(False)
    packed = packed_forwards(linear, 2**40, products)[linear]
    x = torch.randn(300, width, generator=torch.Generator().manual_seed(0))
    for rows in (1, 2, 3, 16, 17, 64, 300):
        assert torch.equal(packed(x[:rows])[0], packed(x[0])) and torch.equal(
            packed(x[None, :rows])[0], packed(x[:rows])
        )


@pytest.mark.parametrize("room", [0.4, 0.6])
@needs_bfloat16
def test_products_in_bfloat16_are_refused_where_memory_does_not_hold_them(room):
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
    available = round(room * sum(layer.weight.nbytes for layer in model) / MOST_MEMORY)
    if room > 0.5:
        assert len(packed_forwards(model, available, torch.bfloat16)) == 2
    else:
        with pytest.raises(ValueError, match="no products in bfloat16: copies of the weights take"):
            packed_forwards(model, available, torch.bfloat16)


def test_a_cpu_without_products_in_bfloat16_refuses_them(monkeypatch):
    monkeypatch.setattr(packed_linear, "operators_work", lambda products: False)
    with pytest.raises(ValueError, match="does not multiply packed weights"):
        packed_forwards(nn.Linear(8, 8), 2**40, torch.bfloat16)
    assert packed_forwards(nn.Linear(8, 8), 2**40) == {}


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
