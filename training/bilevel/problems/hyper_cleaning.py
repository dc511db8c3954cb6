"""Hyper-cleaning: learn a weight for every training image, so that wrong labels weigh little.

x [N]: a logit for each training image of all agents. y: a linear classifier. The lower level fits y to the weighted
training images, the upper level judges it on clean ones (arXiv:2411.14166, experiments).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy

from training.bilevel.problem import BilevelProblem, Tree
from training.bilevel.problems.fashion_mnist import Images

RIDGE = 1e-3


class Batch(NamedTuple):
    """Of one agent, or of n with a leading axis: training images, their places in x, and clean images."""

    train: Images
    places: torch.Tensor
    clean: Images


def logits(y: Tree, pixels: torch.Tensor) -> torch.Tensor:
    return pixels @ y["weights"] + y["bias"]


def train_loss(x: torch.Tensor, y: Tree, batch: Batch) -> torch.Tensor:
    """Mean of sigmoid(x_j) · cross-entropy of image j, and a ridge that makes it strongly convex."""
    losses = cross_entropy(logits(y, batch.train.pixels), batch.train.labels, reduction="none")
    ridge = y["weights"].square().sum() + y["bias"].square().sum()
    return (torch.sigmoid(x[batch.places]) * losses).mean() + RIDGE * ridge


def clean_loss(x: torch.Tensor, y: Tree, batch: Batch) -> torch.Tensor:
    return cross_entropy(logits(y, batch.clean.pixels), batch.clean.labels) + 0 * x.sum()


PROBLEM = BilevelProblem(clean_loss, train_loss)


class Agents(NamedTuple):
    """The data of n agents. train and clean [n, m, ...]; corrupted [n, m], true where a training label is wrong."""

    train: Images
    clean: Images
    corrupted: torch.Tensor

    def everything(self) -> Batch:
        agents, images = self.corrupted.shape
        return Batch(self.train, torch.arange(agents * images).view(agents, images), self.clean)

    def draw(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """Which ``size`` training and ``size`` clean images of each agent, with replacement: [2, n, size]."""
        agents, images = self.corrupted.shape
        return torch.randint(images, (2, agents, size), generator=generator)

    def take(self, drawn: torch.Tensor) -> Batch:
        """Those images."""
        agents, images = self.corrupted.shape
        rows = torch.arange(agents)[:, None]
        train, clean = drawn
        return Batch(
            Images(self.train.pixels[rows, train], self.train.labels[rows, train]),
            rows * images + train,
            Images(self.clean.pixels[rows, clean], self.clean.labels[rows, clean]),
        )


def share_out(
    images: Images, agents: int, each: int, *, corruption: float, concentration: float, rng: np.random.Generator
) -> Agents:
    """``each`` training and ``each`` clean images to every agent, none twice.

    Shares of classes are Dirichlet(``concentration``) for each agent. A training label is wrong with probability
    ``corruption``, and then any of the others. Raises ValueError where a class has too few images.
    """
    labels = images.labels.numpy()
    classes = int(labels.max()) + 1
    pools = [list(rng.permutation(np.flatnonzero(labels == one))) for one in range(classes)]
    taken = []
    for _ in range(agents):
        counts = rng.multinomial(2 * each, rng.dirichlet(np.full(classes, concentration)))
        short = [one for one in range(classes) if counts[one] > len(pools[one])]
        if short:
            raise ValueError(f"class {short[0]} has too few images left: fewer agents, or a larger concentration")
        mine = [pools[one].pop() for one in range(classes) for _ in range(counts[one])]
        taken.append(rng.permutation(mine))
    chosen = torch.from_numpy(np.stack(taken))
    train, clean = (Images(images.pixels[part], images.labels[part]) for part in chosen.split(each, dim=1))
    corrupted = torch.from_numpy(rng.random((agents, each)) < corruption)
    shift = torch.from_numpy(rng.integers(1, classes, (agents, each)))
    wrong = torch.where(corrupted, (train.labels + shift) % classes, train.labels)
    return Agents(Images(train.pixels, wrong), clean, corrupted)


def start(agents: Agents) -> tuple[torch.Tensor, Tree]:
    """x and y of one agent: every image weighs a half, and the classifier is zero."""
    classes = int(agents.clean.labels.max()) + 1
    like = agents.train.pixels
    weights = like.new_zeros(like.shape[-1], classes)
    return like.new_zeros(agents.corrupted.numel()), {"weights": weights, "bias": weights[0].clone()}


def accuracy(y: Tree, test: Images) -> torch.Tensor:
    """Of classifiers y [..., n, ...] on test images, the mean over agents: [...]."""
    found = torch.einsum("td,...dc->...tc", test.pixels, y["weights"]) + y["bias"][..., None, :]
    return (found.argmax(-1) == test.labels).double().mean((-2, -1))


def found_wrong(x: torch.Tensor, agents: Agents) -> float:
    """How well one x tells wrong labels: the chance that a wrong one weighs less than a right one (AUC).

    NaN where x is not finite.
    """
    if not x.isfinite().all():
        return float("nan")
    return float(roc_auc_score(agents.corrupted.reshape(-1).numpy(), -x.numpy()))
