"""Hyper-representation: features for a linear head (arXiv:2405.18858).

x: {"in" [d, h], "bias" [h]}, a layer of h features. y [h + 1, classes]: the head. The lower level fits y to training
data, the upper level evaluates x and y on validation data.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from training.bilevel.problem import BilevelProblem, Tree
from training.bilevel.problems.logistic import Batch

RIDGE = 1e-2


def features(x: Tree, inputs: torch.Tensor) -> torch.Tensor:
    """[m, h + 1], the last of them 1."""
    hidden = torch.tanh(inputs @ x["in"] + x["bias"])
    return torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=-1)


def train_loss(x: Tree, y: torch.Tensor, batch: Batch) -> torch.Tensor:
    loss = cross_entropy(features(x, batch.train.inputs) @ y, batch.train.classes)
    return loss + RIDGE / 2 * y.square().sum()


def validation_loss(x: Tree, y: torch.Tensor, batch: Batch) -> torch.Tensor:
    return cross_entropy(features(x, batch.validation.inputs) @ y, batch.validation.classes)


PROBLEM = BilevelProblem(validation_loss, train_loss)


def start(inputs: int, hidden: int, classes: int, generator: torch.Generator) -> tuple[Tree, torch.Tensor]:
    """x and y of one agent: random features, and a head of zeros."""
    weights = torch.randn(inputs, hidden, generator=generator) / inputs**0.5
    return {"in": weights, "bias": torch.zeros(hidden)}, torch.zeros(hidden + 1, classes)
