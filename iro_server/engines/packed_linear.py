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


def packed_forwards(model: nn.Module, available: int) -> dict[nn.Linear, Forward]:
    """Of each linear layer in float32 on a CPU, its product with packed weights. Empty where the copies would take more
    than their share of ``available`` bytes, or where this build of torch has no such product."""
    linears = list(_linears(model))
    size = sum(linear.weight.nbytes for linear in linears)
    if not linears or not operators_work():
        return {}
    if size > MOST_MEMORY * available:
        log.info("weights are not packed: copies of %.1f GB, %.1f GB are available", size / 1e9, available / 1e9)
        return {}
    return {linear: _packed(linear) for linear in linears}


def _linears(model: nn.Module) -> Iterator[nn.Linear]:
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            yield module


def _packed(linear: nn.Linear) -> Forward:
    weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
    bias = None if linear.bias is None else linear.bias.detach()

    def forward(x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product

    return forward


@cache
def operators_work() -> bool:
    """Whether this build of torch has the operators, which its interface does not promise, and they multiply."""
    if not torch.backends.mkldnn.is_available():
        return False
    linear, x = nn.Linear(16, 8), torch.randn(3, 16)
    try:
        with torch.no_grad():
            torch.testing.assert_close(_packed(linear)(x), linear(x), atol=1e-4, rtol=1e-4)
    except (AttributeError, RuntimeError, TypeError, AssertionError) as error:
        log.warning("weights are not packed, decoding is slower: %s", error)
        return False
    return True
