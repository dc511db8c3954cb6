"""Value functions V(s_t) on feature vectors: linear, and a small multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from value_heads.features import FINISHED, LENGTH, TOKENS, Block, FeatureSpec


@dataclass(frozen=True, eq=False)
class LinearHead:
    """V = weight · x + bias; the features' standardisation is already folded into both. weight: [F] float32."""

    spec: FeatureSpec
    weight: Tensor
    bias: float

    def __call__(self, features: Tensor) -> Tensor:
        """[..., F] -> [...]."""
        return features @ self.weight.to(features) + self.bias

    def weights(self) -> list[Tensor]:
        return [self.weight, torch.tensor(self.bias)]


class MLPHead(nn.Module):
    """Standardised features through one or two hidden layers (GELU, dropout while training)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, spec: FeatureSpec, mean: Tensor, std: Tensor, hidden: Sequence[int] = (64,), dropout: float = 0.1
    ):
        super().__init__()
        self.spec, self.hidden, self.dropout = spec, tuple(hidden), dropout
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())
        layers: list[nn.Module] = []
        width = len(mean)
        for size in hidden:
            layers += [nn.Linear(width, size), nn.GELU(), nn.Dropout(dropout)]
            width = size
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        """[..., F] -> [...]."""
        values: Tensor = self.net((features - self.mean) / self.std)
        return values.squeeze(-1)

    def weights(self) -> list[Tensor]:
        return [*self.buffers(), *self.parameters()]


Head = LinearHead | MLPHead


def fold(heads: Sequence[LinearHead], betas: Sequence[float], spec: FeatureSpec) -> LinearHead:
    """Sum_t V_t / beta_t as one linear head on ``spec``, which must contain every head's blocks.

    The fold is exact: a block's weights move to its place in ``spec``, rescaled from one spec to the other.
    """
    sizes = {_hidden_size(head.spec, len(head.weight)) for head in heads}
    if len(sizes) > 1:
        raise ValueError(f"heads read models of different hidden sizes: {sorted(sizes)}")
    size = sizes.pop()
    total = torch.zeros(spec.width(size), dtype=torch.float64)
    places = feature_places(spec, len(total))
    for head, beta in zip(heads, betas, strict=True):
        for block, place in feature_places(head.spec, len(head.weight)).items():
            ratio = head.spec.scale(block) / spec.scale(block)
            target = places[block]
            if block.layer == TOKENS:
                target = target[torch.searchsorted(torch.tensor(spec.counted), torch.tensor(head.spec.counted))]
            total[target] += head.weight[place].double().cpu() * (ratio / beta)
    bias = sum(head.bias / beta for head, beta in zip(heads, betas, strict=True))
    return LinearHead(spec, total.float(), bias)


def with_ended(head: LinearHead, ended: LinearHead) -> LinearHead:
    """V of ``head``, and that of ``ended`` where y_t is a stop id: a value function for finished responses alone.

    ValueError where the two read different features, or none that shows stop ids.
    """
    if head.spec != ended.spec or head.spec.ended or not head.spec.stop_ids:
        raise ValueError("the value function of finished responses reads the same features, stop ids among them")
    spec = head.spec.model_copy(update={"ended": True})
    size = _hidden_size(head.spec, len(head.weight))
    weight = torch.zeros(spec.width(size), dtype=torch.float64)
    places, of_part = feature_places(spec, len(weight)), feature_places(head.spec, len(head.weight))
    change = ended.weight.double() - head.weight.double()
    for block, place in of_part.items():
        weight[places[block]] += head.weight[place].double()
        if block.kind == FINISHED:
            weight[places[block]] += change[place]
        elif block.kind == LENGTH:
            weight[places[Block(FINISHED)][1:]] += change[place]
        else:
            weight[places[block._replace(ended=True)]] += change[place]
    weight[places[Block(FINISHED)][0]] += ended.bias - head.bias
    return LinearHead(spec, weight.float(), head.bias)


def _hidden_size(spec: FeatureSpec, features: int) -> int:
    fixed = spec.width(0)
    return (features - fixed) // (spec.width(1) - fixed)


def feature_places(spec: FeatureSpec, features: int) -> dict[Block, Tensor]:
    """The indices of each block in a vector of ``features`` features."""
    hidden_size = _hidden_size(spec, features)
    places, start = {}, 0
    for block in spec.blocks:
        width = spec.block_width(block, hidden_size)
        places[block] = torch.arange(start, start + width)
        start += width
    return places
