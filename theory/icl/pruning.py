"""Pruning hidden neurons: by the magnitude of their row of W_O, smallest or largest first, or at random."""

from __future__ import annotations

import torch
from torch import Tensor

from theory.icl.model import Models

ORDERS = ("small", "random", "large")


def pruned(models: Models, fraction: float, order: str, generator: torch.Generator) -> Models:
    """The models with the first ⌊fraction·m⌋ rows of W_O [R, m, D] set to zero, in the given order."""
    rows = models.O.norm(dim=-1)  # [R, m]
    score = {"small": rows, "large": -rows, "random": torch.rand(rows.shape, generator=generator)}[order]
    rank = score.argsort(-1).argsort(-1)
    keep = rank >= int(fraction * rows.shape[-1])
    return Models(models.Q, models.K, models.V, models.O * keep[..., None])


def row_norms(models: Models) -> Tensor:
    """Norms of W_O's rows, in increasing order [R, m]."""
    return models.O.norm(dim=-1).sort(-1).values
