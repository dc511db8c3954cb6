"""Random orthonormal patterns in the span of given ones."""

from __future__ import annotations

import numpy as np


def orthonormal_combinations(rng: np.random.Generator, M: int, count: int, coefficient_sum: float) -> np.ndarray:
    """Coefficients [count, M] of random orthonormal vectors in the span of M orthonormal ones.

    Each row sums to ``coefficient_sum``: a random basis is reflected so that (1, …, 1) has the coordinates required.
    """
    if count > M or count * coefficient_sum**2 > M:
        raise ValueError(
            f"{count} orthonormal patterns with coefficient sum {coefficient_sum:g} do not fit the span of {M} patterns"
        )
    basis, _ = np.linalg.qr(rng.standard_normal((M, M)))
    source = basis @ np.full(M, M**-0.5)
    goal = np.zeros(M)
    goal[:count] = coefficient_sum * M**-0.5
    if count < M:
        goal[count] = np.sqrt(max(0.0, 1 - count * coefficient_sum**2 / M))
    normal = source - goal
    if normal @ normal > 1e-24:
        basis = basis - 2 * np.outer(normal, normal @ basis) / (normal @ normal)
    return basis[:count]
