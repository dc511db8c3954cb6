"""Hyperparameters of logistic regression: a ridge per feature, evaluated on validation data (arXiv:2405.18858).

x [d]: log ridges. y: {"weights" [d, classes], "bias" [classes]}.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from training.bilevel.problem import BilevelProblem, Tree

BIAS_RIDGE = 1e-3


class Rows(NamedTuple):
    """inputs [m, d] and classes [m], int64."""

    inputs: torch.Tensor
    classes: torch.Tensor


class Batch(NamedTuple):
    """Of one agent, or of n with a leading axis."""

    train: Rows
    validation: Rows


def logits(y: Tree, inputs: torch.Tensor) -> torch.Tensor:
    return inputs @ y["weights"] + y["bias"]


def train_loss(x: torch.Tensor, y: Tree, batch: Batch) -> torch.Tensor:
    ridge = (x.exp() * y["weights"].square().mT).sum() + BIAS_RIDGE * y["bias"].square().sum()
    return cross_entropy(logits(y, batch.train.inputs), batch.train.classes) + ridge / 2


def validation_loss(x: torch.Tensor, y: Tree, batch: Batch) -> torch.Tensor:
    return cross_entropy(logits(y, batch.validation.inputs), batch.validation.classes) + 0 * x.sum()


PROBLEM = BilevelProblem(validation_loss, train_loss)
