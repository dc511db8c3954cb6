"""Many small networks with stacked parameters: a layer of all networks is one batched product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


class StackedMLP(nn.Module):
    """``n`` ReLU MLPs of ``sizes``, weights [n, in, out] and biases [n, 1, out] each U(±1/√in) as in nn.Linear."""

    def __init__(self, n: int, sizes: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        pairs = list(pairwise(sizes))
        self.weights = nn.ParameterList(_uniform((n, i, o), i, generator) for i, o in pairs)
        self.biases = nn.ParameterList(_uniform((n, 1, o), i, generator) for i, o in pairs)

    def forward(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """The outputs [m, B, out] of the ``first`` m networks on [B, in], or on [m, B, in] of their own."""
        x = x.expand(first, -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer:
                x = torch.relu(x)
            if first < len(weight):  # a full slice would copy in the backward pass
                weight, bias = weight[:first], bias[:first]
            x = torch.baddbmm(bias, x, weight)
        return x

    @torch.no_grad()
    def copy_network(self, source: int, to: int) -> None:
        for parameter in self.parameters():
            parameter[to] = parameter[source]


def _uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in))
