"""Flows of the full system in d = 2: of all parameters, and with separate keys and queries."""

from __future__ import annotations

import numpy as np

from theory.gradient_flow.system import Moments, Sampler, split_keys_queries
from theory.lab import Result


def heavy_tailed(n: int) -> Sampler:
    """Student-t inputs, clipped, with a tanh teacher: moments that no formula gives."""

    def draw(rng: np.random.Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
        x = np.clip(rng.standard_t(5, (samples, n + 1, 2)), -4, 4)
        return x, np.tanh(np.einsum("snd,sd->sn", x, rng.standard_normal((samples, 2))))

    return draw


def joint_parameters(moments: Moments, path: np.ndarray) -> Result:
    """Losses, the drift of the invariant, and the curvature where flows [T, R, 9] of all parameters are stuck."""
    v, W = path[..., :3], path[..., 3:].reshape(*path.shape[:-1], 3, 2)
    invariant = (v**2).sum(-1) - (W**2).sum((-2, -1))
    end = moments.loss(v, W)[-1]
    lowest = [np.linalg.eigvalsh(_hessian(moments, point))[0] for point in path[-1]]
    stuck = end > end.min() + 1e-3
    return {
        "loss": moments.loss(v, W).T[:10],
        "end": end,
        "drift": np.abs(invariant - invariant[:1]).max(),
        "stuck": int(stuck.sum()),
        "lowest_eigenvalue_where_stuck": min(
            (value for value, is_stuck in zip(lowest, stuck, strict=True) if is_stuck), default=None
        ),
    }


def _hessian(moments: Moments, theta: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """∇²L [P, P] at theta [P], by central differences of the velocity."""
    moved = step * np.eye(len(theta))
    slopes = (moments.velocity(theta + moved) - moments.velocity(theta - moved)) / (2 * step)
    return -0.5 * (slopes + slopes.T)


def separate_keys_queries(moments: Moments, path: np.ndarray) -> Result:
    """The same losses and drifts of flows [T, R, 18] whose keys and queries are separate."""
    v, K, Q = split_keys_queries(path, 2, 3)
    matrix = K @ K.swapaxes(-1, -2) - Q @ Q.swapaxes(-1, -2)
    scalar = (v**2).sum(-1) - (K**2).sum((-2, -1))
    return {
        "keys_queries_loss": moments.loss(v, K.swapaxes(-1, -2) @ Q).T[:10],
        "keys_queries_end": moments.loss(v, K.swapaxes(-1, -2) @ Q)[-1],
        "keys_queries_drift": max(np.abs(matrix - matrix[:1]).max(), np.abs(scalar - scalar[:1]).max()),
    }
