"""Gradient flow of linear in-context learning, for any data distribution.

E = [[x_1 … x_n, x_q], [y_1 … y_n, 0]], H = EEᵀ/n, ŷ = vᵀHW x_q with v [d+1] and W [d+1, d], L = ½E(ŷ − y_q)².
The distribution enters through three moments only, so that its gradient flow is an ODE in (v, W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.integrate import solve_ivp
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)
Velocity = Callable[[np.ndarray], np.ndarray]
Sampler = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Moments:
    """E y_q²; B [d+1, d+1, d] = E y_q H_ab x_c; M [d+1, d+1, d, d+1, d+1, d] = E H_ab x_c H_a'b' x_c'."""

    target: float
    B: np.ndarray
    M: np.ndarray

    def residual(self, v: np.ndarray, W: np.ndarray) -> np.ndarray:
        """G = B − M·(v ⊗ W) [..., d+1, d+1, d]: the flow is v̇_a = Σ G_abc W_bc, Ẇ_bc = Σ G_abc v_a."""
        return self.B - np.einsum("abcdef,...d,...ef->...abc", self.M, v, W, optimize=True)

    def loss(self, v: np.ndarray, W: np.ndarray) -> np.ndarray:
        """L [...] of v [..., d+1] and W [..., d+1, d]."""
        pull = np.einsum("...abc,...a,...bc->...", self.B + self.residual(v, W), v, W, optimize=True)
        return 0.5 * self.target - 0.5 * pull

    def velocity(self, theta: np.ndarray) -> np.ndarray:
        """−∇L [..., (d+1)²] at theta = (v, W) flattened."""
        d = self.B.shape[2]
        v, W = theta[..., : d + 1], theta[..., d + 1 :].reshape(*theta.shape[:-1], d + 1, d)
        G = self.residual(v, W)
        dv, dW = np.einsum("...abc,...bc->...a", G, W), np.einsum("...abc,...a->...bc", G, v)
        return np.concatenate([dv, dW.reshape(*dW.shape[:-2], -1)], axis=-1)

    def keys_queries_velocity(self, theta: np.ndarray, rank: int) -> np.ndarray:
        """−∇L at theta = (v, K [rank, d+1], Q [rank, d]) flattened, where W = KᵀQ."""
        v, K, Q = split_keys_queries(theta, self.B.shape[2], rank)
        W = np.einsum("...mb,...mc->...bc", K, Q)
        G = self.residual(v, W)
        D = np.einsum("...abc,...a->...bc", G, v)
        parts = (
            np.einsum("...abc,...bc->...a", G, W),
            np.einsum("...mc,...bc->...mb", Q, D),
            np.einsum("...mb,...bc->...mc", K, D),
        )
        return np.concatenate([part.reshape(*theta.shape[:-1], -1) for part in parts], axis=-1)


def split_keys_queries(theta: np.ndarray, d: int, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """v [..., d+1], K [..., rank, d+1], Q [..., rank, d] of a flattened theta."""
    v, K, Q = np.split(theta, [d + 1, d + 1 + rank * (d + 1)], axis=-1)
    return v, K.reshape(*K.shape[:-1], rank, d + 1), Q.reshape(*Q.shape[:-1], rank, d)


def gaussian_moments(covariance: np.ndarray, n: int) -> Moments:
    """Exact moments of x ~ N(0, Λ), y = wᵀx, w ~ N(0, I), for Λ [d, d] and n examples.

    Given w all is Gaussian: Wick's theorem gives moments of x_q up to the sixth and of ΣzzᵀT/n up to the second. Over w
    they are polynomials of degree 4, which three Gauss-Hermite nodes a dimension integrate exactly. d ≤ 6 or so.
    """
    d = len(covariance)
    check_covariance(covariance)
    fourth, sixth = _wick(covariance)
    B, M = np.zeros((d + 1, d + 1, d)), np.zeros((d + 1, d + 1, d, d + 1, d + 1, d))
    Q2 = np.zeros((d + 1, d + 1, d, d))  # E Q_ab x_c x_c' with Q = x_q x_qᵀ/n, bordered by zeros
    Q2[:d, :d] = fourth / n
    Q4 = np.zeros_like(M)
    Q4[:d, :d, :, :d, :d, :] = np.einsum("abdecf->abcdef", sixth) / n**2
    for w, weight in _hermite(d):
        cross = covariance @ w
        C = np.block([[covariance, cross[:, None]], [cross[None], np.array([[w @ cross]])]])
        S2 = np.einsum("ab,de->abde", C, C)
        S2 = S2 + (np.einsum("ad,be->abde", C, C) + np.einsum("ae,bd->abde", C, C)) / n
        mixed = np.einsum("ab,decf->abcdef", C, Q2)
        M += weight * (np.einsum("abde,cf->abcdef", S2, covariance) + mixed + mixed.transpose(3, 4, 5, 0, 1, 2) + Q4)
        B += weight * (np.einsum("ab,c->abc", C, cross) + np.einsum("abcf,f->abc", Q2, w))
    return Moments(float(np.trace(covariance)), B, M)


def check_covariance(covariance: np.ndarray) -> None:
    if not np.allclose(covariance, covariance.T) or np.linalg.eigvalsh(covariance).min() <= 0:
        raise ValueError("the covariance of x must be symmetric and positive definite")


def _wick(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E x_a x_b x_c x_d and E x_a … x_f of N(0, covariance): sums over pairings (Isserlis)."""
    fourth = sum(np.einsum(f"{p},{q}->abcd", covariance, covariance) for p, q in _pairings("abcd"))
    three = (covariance,) * 3
    sixth = sum(np.einsum(f"{p},{q},{r}->abcdef", *three) for p, q, r in _pairings("abcdef"))
    return np.asarray(fourth), np.asarray(sixth)


def _pairings(letters: str) -> list[list[str]]:
    if not letters:
        return [[]]
    first, rest = letters[0], letters[1:]
    return [[first + second, *others] for second in rest for others in _pairings(rest.replace(second, ""))]


def _hermite(d: int) -> list[tuple[np.ndarray, float]]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    grid = np.indices((3,) * d).reshape(d, -1).T
    return [(nodes[index], float(np.prod(weights[index]))) for index in grid]


def estimated_moments(sampler: Sampler, rng: np.random.Generator, samples: int) -> Moments:
    """Moments of any distribution by Monte Carlo. ``sampler``: x [samples, n+1, d] and y [samples, n+1], query last."""
    H, x, target = prompts(sampler, rng, samples)
    features = np.einsum("sab,sc->sabc", H, x)
    M = np.tensordot(features, features, (0, 0)) / samples
    return Moments(float(np.mean(target**2)), np.einsum("s,sabc->abc", target, features) / samples, M)


def prompts(sampler: Sampler, rng: np.random.Generator, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """H [samples, d+1, d+1], x_q [samples, d], y_q [samples]."""
    x, y = sampler(rng, samples)
    z = np.concatenate([x, y[..., None]], axis=-1)
    z[:, -1, -1] = 0
    return z.transpose(0, 2, 1) @ z / (x.shape[1] - 1), x[:, -1], y[:, -1]


def linear_regression(covariance: np.ndarray, n: int) -> Sampler:
    """x ~ N(0, Λ), y = wᵀx with a new w ~ N(0, I) for each prompt of n examples and a query."""
    root = np.linalg.cholesky(covariance)

    def draw(rng: np.random.Generator, samples: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.standard_normal((samples, n + 1, len(root))) @ root.T
        return x, np.einsum("snd,sd->sn", x, rng.standard_normal((samples, len(root))))

    return draw


def flow(
    velocity: Velocity, start: np.ndarray, times: np.ndarray, rtol: float = 1e-12, atol: float = 1e-13
) -> np.ndarray:
    """Trajectories [T, R, P] of R starts [R, P] at ``times`` [T] (the first is that of the start), by DOP853."""
    shape = start.shape
    solution = solve_ivp(
        lambda _, y: velocity(y.reshape(shape)).ravel(),
        (times[0], times[-1]),
        start.ravel(),
        method="DOP853",
        t_eval=times,
        rtol=rtol,
        atol=atol,
    )
    if not solution.success:
        raise ArithmeticError(f"the integration stopped at t = {solution.t[-1]:g}: {solution.message}")
    return solution.y.T.reshape(len(times), *shape)


def sgd(
    sampler: Sampler, rng: np.random.Generator, theta: np.ndarray, rate: float, steps: int, batch: int
) -> np.ndarray:
    """SGD on fresh batches for R independent runs, theta [R, (d+1)²] = (v, W); returns [steps+1, R, (d+1)²]."""
    runs = len(theta)
    path = [theta]
    for _ in range(steps):
        H, x, y = (part.reshape(runs, batch, *part.shape[1:]) for part in prompts(sampler, rng, runs * batch))
        d = x.shape[-1]
        v, W = theta[:, : d + 1], theta[:, d + 1 :].reshape(runs, d + 1, d)
        read = np.einsum("ra,rsab->rsb", v, H)
        error = np.einsum("rsb,rbc,rsc->rs", read, W, x) - y
        dv = np.einsum("rs,rsab,rbc,rsc->ra", error, H, W, x, optimize=True) / batch
        dW = np.einsum("rs,rsb,rsc->rbc", error, read, x, optimize=True) / batch
        theta = theta - rate * np.concatenate([dv, dW.reshape(runs, -1)], axis=1)
        path.append(theta)
    return np.stack(path)
