"""Mixing matrices W [n, n], float64: agent i weighs the values of agent j by W[i, j]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components

TOLERANCE = 1e-8


def ring(agents: int, self_weight: float = 1 / 3) -> torch.Tensor:
    """Every agent has two neighbours, which share the weight 1 - ``self_weight``.

    The paper's "adjusted ring" is a ring with another ``self_weight`` (reconstruction: the paper gives no formula).
    """
    if not 0 < self_weight < 1:
        raise ValueError(f"self_weight: must be between 0 and 1, not {self_weight:g}")
    return checked(_circulant(agents, {0: self_weight, 1: (1 - self_weight) / 2, -1: (1 - self_weight) / 2}))


def torus(rows: int, columns: int) -> torch.Tensor:
    """A grid with periodic boundaries; an agent and its four neighbours have weight 1/5 each."""
    down, across = _circulant(rows, {1: 1.0, -1: 1.0}), _circulant(columns, {1: 1.0, -1: 1.0})
    identity = torch.eye(rows * columns, dtype=torch.float64)
    neighbours = torch.kron(down, torch.eye(columns)) + torch.kron(torch.eye(rows), across)
    return checked((identity + neighbours) / 5)


def exponential(agents: int) -> torch.Tensor:
    """Neighbours at distances 1, 2, 4, ... in both directions, all of equal weight (undirected, so symmetric)."""
    hops = [2**power for power in range(agents.bit_length()) if 2**power < agents]
    offsets = sorted({hop % agents for hop in hops} | {-hop % agents for hop in hops} | {0})
    return checked(_circulant(agents, {offset: 1 / len(offsets) for offset in offsets}))


def fully_connected(agents: int) -> torch.Tensor:
    return checked(torch.full((agents, agents), 1 / agents, dtype=torch.float64))


def from_file(path: str | Path) -> torch.Tensor:
    """The matrix of a text file: one row per line, numbers separated by spaces or commas."""
    try:
        lines = Path(path).read_text().replace(",", " ").splitlines()
        rows = np.loadtxt(lines, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: not a matrix of numbers: {error}") from None
    return checked(torch.from_numpy(rows), str(path))


def checked(mixing: torch.Tensor, name: str = "mixing matrix") -> torch.Tensor:
    """``mixing`` if it is square, doubly stochastic, connected and has a spectral gap; otherwise raises ValueError."""
    if mixing.ndim != 2 or mixing.shape[0] != mixing.shape[1] or not len(mixing):
        raise ValueError(f"{name}: must be square, one row and one column per agent, not {list(mixing.shape)}")
    if not torch.isfinite(mixing).all() or (mixing < 0).any():
        raise ValueError(f"{name}: not doubly stochastic: weights must be finite and not below 0")
    for axis, label in ((1, "row"), (0, "column")):
        sums = mixing.sum(axis)
        worst = int((sums - 1).abs().argmax())
        if (sums[worst] - 1).abs() > TOLERANCE:
            raise ValueError(
                f"{name}: not doubly stochastic: {label} {worst} sums to {float(sums[worst]):.10g}; "
                f"make it 1 to within {TOLERANCE:g}"
            )
    components = connected_components(mixing.numpy() > 0, connection="strong")[0]
    if components > 1:
        raise ValueError(f"{name}: not connected: {components} groups without an edge between them; add one")
    if spectral_gap(mixing) < TOLERANCE:
        raise ValueError(f"{name}: spectral gap 0, agents never agree; increase the self-weights: (I + W)/2")
    return mixing


def spectral_gap(mixing: torch.Tensor) -> float:
    """1 - the largest singular value of W - 11ᵀ/n: 1 if agents agree in one round, 0 if they never do."""
    return 1 - float(torch.linalg.matrix_norm(mixing - 1 / len(mixing), ord=2))


def _circulant(agents: int, weights: dict[int, float]) -> torch.Tensor:
    if agents < 1:
        raise ValueError(f"agents: must be at least 1, not {agents}")
    mixing, rows = torch.zeros(agents, agents, dtype=torch.float64), torch.arange(agents)
    for offset, weight in weights.items():
        mixing[rows, (rows + offset) % agents] += weight
    return mixing
