"""Which rows of a round live on."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch


def top(values: Sequence[float], width: int) -> list[int]:
    """The ``width`` highest values, best first."""
    return sorted(range(len(values)), key=lambda i: -values[i])[:width]


def diversity_first(values: Sequence[float], texts: Sequence[Hashable], width: int) -> list[int]:
    """The paper's rule: the best of each group of identical rows first, by value; then duplicates, by value."""
    order = top(values, len(values))
    seen: set[Hashable] = set()
    first: list[int] = []
    again: list[int] = []
    for i in order:
        (again if texts[i] in seen else first).append(i)
        seen.add(texts[i])
    return (first + again)[:width]


def resample(log_weights: torch.Tensor, width: int, generator: torch.Generator) -> list[int]:
    """SMC: ``width`` rows drawn in proportion to their weights, by systematic resampling (unbiased, low variance)."""
    weights = torch.softmax(log_weights.double(), dim=0)
    points = (torch.arange(width) + torch.rand((), generator=generator, dtype=torch.float64)) / width
    return torch.searchsorted(weights.cumsum(0), points).clamp_max(len(weights) - 1).tolist()
