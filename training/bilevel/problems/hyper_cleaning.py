"""Hyper-cleaning: learn a weight for every training image, small where its label is wrong.

x [N]: a logit for each training image of all agents. y: a linear classifier. The lower level fits y to the weighted
training images, the upper level evaluates it on clean images (arXiv:2411.14166, experiments).
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
    """Of one agent, or of n with a leading axis: training images, their indices in x, and clean images."""

    train: Images
    indices: torch.Tensor
    clean: Images


def logits(y: Tree, pixels: torch.Tensor) -> torch.Tensor:
    return pixels @ y["weights"] + y["bias"]


def train_loss(x: torch.Tensor, y: Tree, batch: Batch) -> torch.Tensor:
    """Mean of sigmoid(x_j) · cross-entropy of image j, and a ridge that makes it strongly convex."""
    losses = cross_entropy(logits(y, batch.train.pixels), batch.train.labels, reduction="none")
    ridge = y["weights"].square().sum() + y["bias"].square().sum()
    return (torch.sigmoid(x[batch.indices]) * losses).mean() + RIDGE * ridge


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
        """Indices of ``size`` training and ``size`` clean images of each agent, with replacement: [2, n, size]."""
        agents, images = self.corrupted.shape
        return torch.randint(images, (2, agents, size), generator=generator)

    def take(self, indices: torch.Tensor) -> Batch:
        """The images of ``draw``'s indices."""
        agents, images = self.corrupted.shape
        rows = torch.arange(agents)[:, None]
        train, clean = indices
        return Batch(
            Images(self.train.pixels[rows, train], self.train.labels[rows, train]),
            rows * images + train,
            Images(self.clean.pixels[rows, clean], self.clean.labels[rows, clean]),
        )


def share_out(
    images: Images, agents: int, count: int, *, corruption: float, concentration: float, rng: np.random.Generator
) -> Agents:
    """``count`` training and ``count`` clean images for every agent, no image twice.

    Shares of classes are Dirichlet(``concentration``) for each agent. A training label is wrong with probability
    ``corruption``, and then uniform over the wrong classes. Raises ValueError where a class has too few images.
    """
    labels = images.labels.numpy()
    classes = int(labels.max()) + 1
    pools = [list(rng.permutation(np.flatnonzero(labels == label))) for label in range(classes)]
    taken = []
    for _ in range(agents):
        counts = rng.multinomial(2 * count, rng.dirichlet(np.full(classes, concentration)))
        short = [label for label in range(classes) if counts[label] > len(pools[label])]
        if short:
            raise ValueError(f"class {short[0]} has too few images left: fewer agents, or a larger concentration")
        images_of_agent = [pools[label].pop() for label in range(classes) for _ in range(counts[label])]
        taken.append(rng.permutation(images_of_agent))
    chosen = torch.from_numpy(np.stack(taken))
    train, clean = (Images(images.pixels[part], images.labels[part]) for part in chosen.split(count, dim=1))
    corrupted = torch.from_numpy(rng.random((agents, count)) < corruption)
    shift = torch.from_numpy(rng.integers(1, classes, (agents, count)))
    wrong = torch.where(corrupted, (train.labels + shift) % classes, train.labels)
    return Agents(Images(train.pixels, wrong), clean, corrupted)


def start(agents: Agents, classes: int) -> tuple[torch.Tensor, Tree]:
    """x and y of one agent: every image has weight 1/2, and the classifier of ``classes`` is zero."""
    like = agents.train.pixels
    weights = like.new_zeros(like.shape[-1], classes)
    return like.new_zeros(agents.corrupted.numel()), {"weights": weights, "bias": weights[0].clone()}


def accuracy(y: Tree, test: Images) -> torch.Tensor:
    """Mean over agents of the test accuracy of classifiers y [..., n, ...]: [...]."""
    scores = torch.einsum("td,...dc->...tc", test.pixels, y["weights"]) + y["bias"][..., None, :]
    return (scores.argmax(-1) == test.labels).double().mean((-2, -1))


def wrong_label_auc(x: torch.Tensor, agents: Agents) -> float:
    """AUC of -x as a detector of wrong labels: the probability that a wrong label weighs less than a right one.

    NaN if x is not finite, or if all labels are right or all wrong.
    """
    corrupted = agents.corrupted.reshape(-1)
    if not x.isfinite().all() or corrupted.all() or not corrupted.any():
        return float("nan")
    return float(roc_auc_score(corrupted.numpy(), -x.numpy()))
