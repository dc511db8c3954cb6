"""Chain-of-thought data: patterns, tasks as compositions of K transitions, prompts (arXiv:2410.02167).

Coordinates: a column is p̃ = [x; y] + c_k in R^2d. The M training-relevant (TRR) patterns are the axes 0 … M−1 of
R^d and the position codes c_1 … c_K the axes M … M+K−1 of the x half, orthogonal to every pattern. Any other
orthonormal choice is a rotation of this one, under which training from W = δI does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor


def check_dimension(d: int, patterns: int, steps: int) -> None:
    if d < patterns + steps:
        raise ValueError(
            f"d={d} is smaller than the {patterns} patterns and {steps} position codes, which must be orthogonal: "
            f"give d >= {patterns + steps}"
        )


def check_fraction(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} is a fraction of the examples, in (0, 1], not {value:g}")


def check_transitions(matrices: np.ndarray) -> np.ndarray:
    """A_1 … A_K [K, M', M'] as an array: each row a distribution with one largest entry."""
    matrices = np.asarray(matrices, dtype=float)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"transition matrices must be a list of square matrices, not of shape {matrices.shape}")
    sums = matrices.sum(axis=2)
    if matrices.min() < 0 or not np.allclose(sums, 1, atol=1e-9):
        step, row = np.argwhere((matrices.min(axis=2) < 0) | ~np.isclose(sums, 1, atol=1e-9))[0]
        raise ValueError(
            f"row {row} of transition matrix {step + 1} is no distribution: it sums to {sums[step, row]:g}"
        )
    top = np.sort(matrices, axis=2)[..., -2:]
    if (top[..., 1] - top[..., 0] < 1e-12).any():
        raise ValueError("each row of a transition matrix needs one largest entry, the correct step")
    return matrices


@dataclass(frozen=True)
class Chain:
    """What K transition matrices [K, M', M'] say of chain-of-thought and in-context learning."""

    matrices: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrices", check_transitions(self.matrices))

    @property
    def patterns(self) -> int:
        return self.matrices.shape[1]

    @property
    def correct(self) -> np.ndarray:
        """The correct state after each step from each start [M', K+1]: row maxima, one after another."""
        states = [np.arange(self.patterns)]
        for A in self.matrices:
            states.append(A.argmax(axis=1)[states[-1]])
        return np.stack(states, axis=1)

    @property
    def product(self) -> np.ndarray:
        """B = A_1 … A_K: row i is the law of the final state from i."""
        return np.linalg.multi_dot(self.matrices) if len(self.matrices) > 1 else self.matrices[0]

    @property
    def tau(self) -> float:
        """min over starts of the most probable trajectory's probability (max-product over the steps)."""
        best = np.ones(self.patterns)
        for A in self.matrices[::-1]:
            best = (A * best).max(axis=1)
        return float(best.min())

    @property
    def tau_o(self) -> float:
        """min over rows of the largest entry of B."""
        return float(self.product.max(axis=1).min())

    @property
    def rho(self) -> float:
        """The largest ρ with A(i, j*) ≥ A(i, j)/(1 − ρ) for all steps, rows and j ≠ j*."""
        return min(_gap(A) for A in self.matrices)

    @property
    def rho_o(self) -> float:
        """The same of B."""
        return _gap(self.product)

    @property
    def condition_1(self) -> np.ndarray:
        """[M'] bool: from this start the correct final state is the likeliest final state."""
        return self.product.argmax(axis=1) == self.correct[:, -1]


def _gap(matrix: np.ndarray) -> float:
    top = np.sort(matrix, axis=1)
    return float((1 - top[:, -2] / top[:, -1]).min())


SLIDES = Chain(np.array([[[0.6, 0.4], [0.4, 0.6]], [[0.4, 0.6], [0.8, 0.2]]]))


def chain_of(tau: float, rho: float, patterns: int, steps: int) -> Chain:
    """Steps with τ and ρ as given: in each row τ^(1/K), a runner-up (1 − ρ) times that, the rest spread evenly.

    Reconstruction. Step k's correct state is k further on, the runner-up next to it (mod M'). Where less than the
    runner-up's share is left, it gets what is left, and ρ is larger than asked for.
    """
    return Chain(np.stack([_circulant(tau ** (1 / steps), rho, patterns, 1 + k) for k in range(steps)]))


def _circulant(top: float, rho: float, patterns: int, shift: int) -> np.ndarray:
    second = min((1 - rho) * top, 1 - top)
    law = np.full(patterns, (1 - top - second) / (patterns - 2))
    law[0], law[1] = top, second
    if law[2:].max() > second + 1e-12:
        raise ValueError(
            f"no row has largest entry {top:.3g} and rho={rho:g} over {patterns} patterns: give more patterns"
        )
    return np.stack([np.roll(law, i + shift) for i in range(patterns)])


def violating_chain(patterns: int) -> Chain:
    """Two steps whose correct final state is nobody's likeliest: .4 × .5 = .2, while wrong chains meet in .255."""
    first, second = np.zeros(patterns), np.zeros(patterns)
    first[:4], second[:3] = (0.4, 0.25, 0.2, 0.15), (0.5, 0.3, 0.2)
    return Chain(np.stack([[np.roll(law, i) for i in range(patterns)] for law in (first, second)]))


def output_chain_of(tau_o: float, rho_o: float, patterns: int, steps: int) -> Chain:
    """Steps of one law whose product B has τ_o and ρ_o as given (reconstruction). ValueError where none was found."""

    def miss(entries: np.ndarray) -> list[float]:
        made = chain_of(entries[0] ** steps, entries[1], patterns, steps)
        return [made.tau_o - tau_o, made.rho_o - rho_o]

    guess = np.array([tau_o ** (1 / steps), 1 - (1 - rho_o) / steps])
    found = least_squares(miss, guess, bounds=([0.05, 0.0], [1.0, 1.0]), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    if np.abs(found.fun).max() > 1e-6:
        raise ValueError(f"found no step matrices over {patterns} patterns with tau_o={tau_o:g} and rho_o={rho_o:g}")
    return chain_of(found.x[0] ** steps, found.x[1], patterns, steps)


@dataclass(frozen=True)
class TrainingBatch:
    """B prompts for each of R runs, by pattern index. Columns: K·l of the examples, then K−1 of the query's own past.

    x, y [R, B, L] pattern indices of the halves; step [L]; query [R, B] pattern; at [R, B] the step asked for;
    target [R, B]; live [R, B, L] bool: the column exists.
    """

    x: Tensor
    y: Tensor
    step: Tensor
    query: Tensor
    at: Tensor
    target: Tensor
    live: Tensor

    @property
    def same(self) -> Tensor:
        """[R, B, L] bool: the column's x is the query's pattern."""
        return self.x == self.query[..., None]


def training_steps(seed: int, M: int, count: int = 4096) -> Tensor:
    """The transitions [count, M] of training tasks: random permutations of the TRR patterns (reconstruction)."""
    return torch.rand((count, M), generator=torch.Generator().manual_seed(seed)).argsort(-1)


def training_batch(
    generator: torch.Generator, transitions: Tensor, steps: int, lengths: Tensor, alphas: Tensor, batch: int
) -> TrainingBatch:
    """Prompts, each of a task of its own: ``steps`` of ``transitions`` [count, M], drawn evenly.

    ``lengths`` [R] examples and ``alphas`` [R]: ⌈αl⌉ of a prompt's examples start from the query's pattern, the
    others from other patterns, evenly. The step asked for is uniform over 1 … K.
    """
    runs, most, (count, M) = len(lengths), int(lengths.max()), transitions.shape
    query = torch.randint(M, (runs, batch, 1), generator=generator)
    other = (query + torch.randint(1, M, (runs, batch, most), generator=generator)) % M
    index = torch.arange(most)
    relevant = index < torch.ceil(alphas * lengths - 1e-9)[:, None, None]
    states = [torch.cat([torch.where(relevant, query, other), query], dim=2)]  # the query's own chain comes last
    for _ in range(steps):
        task = torch.randint(count, (runs, batch, 1), generator=generator)
        states.append(transitions.flatten()[task * M + states[-1]])
    at = torch.randint(steps, (runs, batch), generator=generator)
    chain = torch.stack([state[..., -1] for state in states], dim=2)  # [R, B, K+1]
    present = (index < lengths[:, None, None]).expand(runs, batch, most)
    past = torch.arange(steps - 1) < at[..., None]
    return TrainingBatch(
        x=torch.cat([*(state[..., :-1] for state in states[:-1]), chain[..., : steps - 1]], dim=2),
        y=torch.cat([*(state[..., :-1] for state in states[1:]), chain[..., 1:steps]], dim=2),
        step=torch.cat([torch.arange(steps).repeat_interleave(most), torch.arange(steps - 1)]),
        query=chain.gather(2, at[..., None])[..., 0],
        at=at,
        target=chain.gather(2, at[..., None] + 1)[..., 0],
        live=torch.cat([present] * steps + [past], dim=2),
    )
