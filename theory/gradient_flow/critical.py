"""Critical points of a loss from random starts, classified by their Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import root

from theory.gradient_flow.system import Array


class Landscape(Protocol):
    """A loss that takes torch tensors, and minus its gradient for NumPy arrays."""

    def loss(self, theta: Array) -> Array: ...

    def velocity(self, theta: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class CriticalClass:
    """A class of critical points of one loss and one Hessian index."""

    loss: float
    index: int  # the number of negative Hessian eigenvalues
    flat: int  # the number of zero Hessian eigenvalues
    point: list[float]
    eigenvalues: list[float]
    count: int  # the number of starts that reach it


def hessians(landscape: Landscape, points: np.ndarray) -> np.ndarray:
    """∇²L [N, P, P] at points [N, P], by automatic differentiation in double precision."""
    second = torch.func.vmap(torch.func.hessian(landscape.loss))
    return np.asarray(second(torch.as_tensor(points, dtype=torch.float64)))


def find(landscape: Landscape, starts: np.ndarray, tolerance: float = 1e-6) -> list[CriticalClass]:
    """The classes of critical points that Powell's hybrid method reaches from ``starts`` [R, P], by loss."""
    ends = np.stack([root(landscape.velocity, start, tol=1e-14).x for start in starts])
    ends = ends[np.abs(landscape.velocity(ends)).max(axis=1) < 1e-10]
    spectra = np.linalg.eigvalsh(hessians(landscape, ends))
    classes: dict[tuple[float, int], list[int]] = {}
    for i, values in enumerate(spectra):
        key = (round(float(landscape.loss(ends[i])), 6), int((values < -tolerance).sum()))
        classes.setdefault(key, []).append(i)
    return [
        CriticalClass(
            loss=float(landscape.loss(ends[members[0]])),
            index=index,
            flat=int((np.abs(spectra[members[0]]) <= tolerance).sum()),
            point=ends[members[0]].tolist(),
            eigenvalues=spectra[members[0]].tolist(),
            count=len(members),
        )
        for (_, index), members in sorted(classes.items())
    ]
