"""Linear layers on a CPU with weights that oneDNN has packed once, at load.

torch's own product packs a weight in each call where the input has several rows, which takes longer than the product
with a few of them. The operators are those that torch's compiler uses for constant weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

ROWS = 16  # for which the layout is chosen; products with other numbers of rows are as exact
MOST_MEMORY = 0.25  # of what is available: the packed weights are copies

Forward = Callable[[Tensor], Tensor]


def packed_forwards(
    model: nn.Module, available: int, products: torch.dtype = torch.float32
) -> dict[nn.Linear, Forward]:
    """Of each linear layer in float32 on a CPU, its product with packed weights. Empty where the copies would take more
    than their share of ``available`` bytes, or where this build of torch has no such product.

    ``products``: the data type of both factors and of the product; sums are in float32. ValueError where that is
    bfloat16 and cannot be: whoever asks for it gets it.
    """
    linears = list(_linears(model))
    size = sum(linear.weight.numel() * products.itemsize for linear in linears)
    if not linears:
        return {}
    if problem := _problem(products, size, available):
        if products != torch.float32:
            raise ValueError(f"no products in bfloat16: {problem}. engine_precision float32 works without")
        log.warning("weights are not packed, decoding is slower: %s", problem)
        return {}
    return {linear: _packed(linear, products) for linear in linears}


def _problem(products: torch.dtype, size: int, available: int) -> str | None:
    """Why weights cannot be packed."""
    if not operators_work(products):
        return f"this CPU, or this build of torch, does not multiply packed weights in {products}"
    if size > MOST_MEMORY * available:
        return f"copies of the weights take {size / 1e9:.1f} GB, {available / 1e9:.1f} GB are available"
    return None


def _linears(model: nn.Module) -> Iterator[nn.Linear]:
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            yield module


def _packed(linear: nn.Linear, products: torch.dtype) -> Forward:
    weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(products), ROWS)
    bias = None if linear.bias is None else linear.bias.detach().to(products)

    def forward(x: Tensor) -> Tensor:
        rows = x.to(products)
        if is_lone := rows[..., 0].numel() == 1:  # by another kernel, oneDNN would round its product in another way
            rows = rows.reshape(1, -1).expand(2, -1)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return (product[:1].reshape(*x.shape[:-1], -1) if is_lone else product).to(x.dtype)

    return forward


@cache
def operators_work(products: torch.dtype = torch.float32) -> bool:
    """Whether this build of torch has the operators, which its interface does not promise, and they multiply."""
    if not torch.backends.mkldnn.is_available():
        return False
    linear, x = nn.Linear(16, 8), torch.randn(3, 16)
    rounding = {torch.float32: 1e-4, torch.bfloat16: 3e-2}[products]
    try:
        if products == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        with torch.no_grad():
            torch.testing.assert_close(_packed(linear, products)(x), linear(x), atol=rounding, rtol=rounding)
    except (AttributeError, RuntimeError, TypeError, AssertionError) as error:
        log.warning("no products with packed weights in %s: %s", products, error)
        return False
    return True
