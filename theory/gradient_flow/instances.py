"""Two instances of the flow with closed forms: Gaussian linear regression, x ~ N(0, Λ), w ~ N(0, I).

The abstract of arXiv:2412.16683 does not specify the paper's instances: these two are a reconstruction. Losses accept
NumPy arrays and torch tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from theory.gradient_flow.system import Array, Velocity, check_covariance


@dataclass(frozen=True)
class InstanceI:
    """v = (0, u), W = (U; 0): theta [..., 1 + d²] = (u, U). ``covariance``: Λ [d, d]; ``n`` examples."""

    covariance: np.ndarray
    n: int

    def __post_init__(self) -> None:
        check_covariance(self.covariance)

    @property
    def gamma(self) -> np.ndarray:
        """Γ = (1 + 1/n)Λ + (tr Λ/n) I."""
        return (1 + 1 / self.n) * self.covariance + np.trace(self.covariance) / self.n * np.eye(len(self.covariance))

    @property
    def optimum(self) -> np.ndarray:
        """uU = Γ⁻¹ [d, d], the minimisers."""
        return np.linalg.inv(self.gamma)

    @property
    def least_loss(self) -> float:
        """L* = ½ tr Λ − ½ tr(Λ²Γ⁻¹)."""
        squared = self.covariance @ self.covariance
        return float(0.5 * np.trace(self.covariance) - 0.5 * np.trace(squared @ self.optimum))

    def split(self, theta: Array) -> tuple[Array, Array]:
        d = len(self.covariance)
        return theta[..., 0], theta[..., 1:].reshape(*theta.shape[:-1], d, d)

    def loss(self, theta: Array) -> Array:
        """L [...] = ½ tr Λ + ½u² tr(ΓΛUΛUᵀ) − u tr(Λ²Uᵀ)."""
        u, U = self.split(theta)
        gamma_lambda, covariance, squared = (_like(part, theta) for part in self._products())
        curvature, pull = ((gamma_lambda @ U @ covariance) * U).sum((-2, -1)), (squared * U).sum((-2, -1))
        return 0.5 * float(np.trace(self.covariance)) + 0.5 * u**2 * curvature - u * pull

    def velocity(self, theta: np.ndarray) -> np.ndarray:
        """u̇ = −tr(uΓΛUΛUᵀ − Λ²Uᵀ) and U̇ = −u²ΓΛUΛ + uΛ²."""
        u, U = self.split(theta)
        gamma_lambda, covariance, squared = self._products()
        force = squared - u[..., None, None] * (gamma_lambda @ U @ covariance)
        dU = u[..., None, None] * force
        return np.concatenate([(force * U).sum((-2, -1))[..., None], dU.reshape(*theta.shape[:-1], -1)], axis=-1)

    def invariant(self, theta: np.ndarray) -> np.ndarray:
        """u² − ‖U‖_F²."""
        return theta[..., 0] ** 2 - (theta[..., 1:] ** 2).sum(-1)

    def saddle_eigenvalues(self, U: np.ndarray) -> tuple[float, float]:
        """The Hessian's two eigenvalues other than zero at (0, U) with tr(Λ²U) = 0: ½(a ± √(a² + 4 tr Λ⁴))."""
        gamma_lambda, covariance, squared = self._products()
        a, root = float(((gamma_lambda @ U @ covariance) * U).sum()), float((squared * squared).sum())
        return 0.5 * (a - math.sqrt(a * a + 4 * root)), 0.5 * (a + math.sqrt(a * a + 4 * root))

    def _products(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ΓΛ, Λ, Λ²."""
        return self.gamma @ self.covariance, self.covariance, self.covariance @ self.covariance


def one_dimensional(c: float, variance: float, n: int) -> Velocity:
    """Instance I with d = 1 in P = uU on u² − U² = c: Ṗ = √(c² + 4P²) λ²(1 − γP) with γ = λ(1 + 2/n)."""
    gamma = variance * (1 + 2 / n)
    return lambda P: np.sqrt(c * c + 4 * P * P) * variance**2 * (1 - gamma * P)


@dataclass(frozen=True)
class InstanceII:
    """d = 1 with all four parameters: theta [..., 4] = (p, v, U, q), where v = (p, v), W = (U, q)ᵀ."""

    variance: float
    n: int

    def __post_init__(self) -> None:
        if self.variance <= 0:
            raise ValueError(f"the variance of x must be positive, not {self.variance:g}")

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """1 + 2/n, 1 + 8/n + 15/n², 2 + 7/n."""
        return 1 + 2 / self.n, 1 + 8 / self.n + 15 / self.n**2, 2 + 7 / self.n

    @property
    def gamma(self) -> float:
        """Optima are {vU = 1/γ, p = q = 0} and {pq = 1/γ, v = U = 0}."""
        return self.variance * (1 + 2 / self.n)

    @property
    def least_loss(self) -> float:
        """L* = λ/(n + 2)."""
        return self.variance / (self.n + 2)

    @property
    def mixed_saddle(self) -> tuple[float, float]:
        """(X, L) with vU = pq = X = 1/(λ(a + e + √(3ac))) and L = λ/2 − λ²X; a, c, e the coefficients."""
        a, c, e = self.coefficients
        X = 1 / (self.variance * (a + e + math.sqrt(3 * a * c)))
        return X, self.variance / 2 - self.variance**2 * X

    @property
    def mixed_saddle_point(self) -> np.ndarray:
        """One point of the mixed saddle: p²U² = X²√(3a/c), and v = 1 fixes its scale."""
        a, c, _ = self.coefficients
        X, _ = self.mixed_saddle
        p = (3 * a / c) ** 0.25
        return np.array([p, 1.0, X, X / p])

    def loss(self, theta: Array) -> Array:
        """L [...] of theta [..., 4]."""
        p, v, U, q = (theta[..., i] for i in range(4))
        a, c, e = self.coefficients
        x = self.variance
        quartic = 0.5 * a * (v * U) ** 2 + 0.5 * c * (p * U) ** 2 + 0.5 * a * (p * q) ** 2
        quartic = quartic + 1.5 * a * (q * v) ** 2 + e * p * q * v * U
        return x / 2 - x**2 * (v * U + p * q) + x**3 * quartic

    def velocity(self, theta: np.ndarray) -> np.ndarray:
        """−∇L [..., 4]."""
        p, v, U, q = (theta[..., i] for i in range(4))
        a, c, e = self.coefficients
        x = self.variance
        cross = e * x
        dp = q - x * (c * p * U * U + a * p * q * q) - cross * q * v * U
        dv = U - x * (a * v * U * U + 3 * a * q * q * v) - cross * p * q * U
        dU = v - x * (a * v * v * U + c * p * p * U) - cross * p * q * v
        dq = p - x * (a * p * p * q + 3 * a * q * v * v) - cross * p * v * U
        return x**2 * np.stack([dp, dv, dU, dq], axis=-1)

    def invariant(self, theta: np.ndarray) -> np.ndarray:
        """p² + v² − U² − q²."""
        return theta[..., 0] ** 2 + theta[..., 1] ** 2 - theta[..., 2] ** 2 - theta[..., 3] ** 2


def _like(array: np.ndarray, reference: Array) -> Array:
    """``array`` as the kind of array that ``reference`` is."""
    return array if isinstance(reference, np.ndarray) else reference.new_tensor(array)
