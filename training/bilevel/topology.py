"""Who talks to whom, and with what weight: mixing matrices W [n, n], float64, W[i, j] of what i hears from j."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components

TOLERANCE = 1e-8


def ring(agents: int, self_weight: float = 1 / 3) -> torch.Tensor:
    """Each with its two neighbours, who share what ``self_weight`` leaves.

    The paper's "adjusted ring" is a ring with another ``self_weight`` (reconstruction: it gives no formula here).
    """
    if not 0 < self_weight < 1:
        raise ValueError(f"self_weight: must be between 0 and 1, not {self_weight:g}")
    return checked(_circulant(agents, {0: self_weight, 1: (1 - self_weight) / 2, -1: (1 - self_weight) / 2}))


def torus(rows: int, columns: int) -> torch.Tensor:
    """A grid whose edges meet; an agent and its four neighbours weigh a fifth each."""
    down, across = _circulant(rows, {1: 1.0, -1: 1.0}), _circulant(columns, {1: 1.0, -1: 1.0})
    own = torch.eye(rows * columns, dtype=torch.float64)
    neighbours = torch.kron(down, torch.eye(columns)) + torch.kron(torch.eye(rows), across)
    return checked((own + neighbours) / 5)


def exponential(agents: int) -> torch.Tensor:
    """Neighbours at distances 1, 2, 4, ... in both directions, all of the same weight (undirected, so symmetric)."""
    hops = [2**power for power in range(agents.bit_length()) if 2**power < agents]
    offsets = sorted({hop % agents for hop in hops} | {-hop % agents for hop in hops} | {0})
    return checked(_circulant(agents, {offset: 1 / len(offsets) for offset in offsets}))


def fully_connected(agents: int) -> torch.Tensor:
    return checked(torch.full((agents, agents), 1 / agents, dtype=torch.float64))


def from_file(path: str | Path) -> torch.Tensor:
    """A matrix written as text, a row a line, separated by spaces or commas."""
    try:
        lines = Path(path).read_text().replace(",", " ").splitlines()
        rows = np.loadtxt(lines, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: not a matrix of numbers: {error}") from None
    return checked(torch.from_numpy(rows), str(path))


def checked(mixing: torch.Tensor, name: str = "mixing matrix") -> torch.Tensor:
    """``mixing`` itself, if it is square, doubly stochastic, connected, and brings agents together; else ValueError."""
    if mixing.ndim != 2 or mixing.shape[0] != mixing.shape[1] or not len(mixing):
        raise ValueError(f"{name}: must be square, a row and a column an agent, not {list(mixing.shape)}")
    if not torch.isfinite(mixing).all() or (mixing < 0).any():
        raise ValueError(f"{name}: not doubly stochastic: weights must be finite and not below 0")
    for axis, what in ((1, "row"), (0, "column")):
        gap = (mixing.sum(axis) - 1).abs()
        if gap.max() > TOLERANCE:
            at = int(gap.argmax())
            total = float(mixing.sum(axis)[at])
            raise ValueError(f"{name}: not doubly stochastic: {what} {at} sums to {total:g}; make it 1")
    parts = connected_components(mixing.numpy() > 0, connection="strong")[0]
    if parts > 1:
        raise ValueError(f"{name}: not connected: {parts} groups never hear from each other; add an edge between them")
    if spectral_gap(mixing) < TOLERANCE:
        raise ValueError(f"{name}: agents would never agree (spectral gap 0); give them weight of their own: (I + W)/2")
    return mixing


def spectral_gap(mixing: torch.Tensor) -> float:
    """1 - the largest singular value of W - 11ᵀ/n: 1 for agents who agree at once, 0 for those who never do."""
    return 1 - float(torch.linalg.matrix_norm(mixing - 1 / len(mixing), ord=2))


def _circulant(agents: int, weights: dict[int, float]) -> torch.Tensor:
    if agents < 1:
        raise ValueError(f"agents: must be at least 1, not {agents}")
    mixing, own = torch.zeros(agents, agents, dtype=torch.float64), torch.arange(agents)
    for offset, weight in weights.items():
        mixing[own, (own + offset) % agents] += weight
    return mixing
