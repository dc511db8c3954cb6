"""1,797 handwritten digits of 8 x 8 pixels, unevenly distributed over the clients, and a small network."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from training.federated.partition import dirichlet

TEST = 297


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits() -> tuple[Tensor, Tensor]:
    """Pixels [1797, 64] in [0, 1] and labels [1797], shuffled. The last TEST are test digits."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return torch.tensor(data.data[order] / 16, dtype=torch.float32), torch.tensor(data.target[order])


def part(client: int, clients: int) -> tuple[Tensor, Tensor]:
    """The training digits of one client."""
    pixels, labels = (values[:-TEST] for values in digits())
    rows = dirichlet(labels.numpy(), clients, 0.3, np.random.default_rng(0))[client]
    return pixels[rows], labels[rows]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    pixels, labels = (values[-TEST:] for values in digits())
    return float((model(pixels).argmax(1) == labels).float().mean())
