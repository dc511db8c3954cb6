"""Chain-of-thought data: patterns, tasks as compositions of K transitions, prompts (arXiv:2410.02167).

Coordinates: a column is p̃ = [x; y] + c_k in R^2d. The M training-relevant (TRR) patterns are the axes 0 … M−1 of
R^d and the position codes c_1 … c_K the axes M … M+K−1 of the x half, orthogonal to every pattern. Any other
orthonormal choice is a rotation of this one, under which training from W = δI does the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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


def check_transitions(matrices: np.ndarray) -> np.ndarray:
    """A_1 … A_K [K, M', M'] as an array: each row a distribution with one largest entry."""
    matrices = np.asarray(matrices, dtype=float)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2]:
        raise ValueError(f"transition matrices must be a list of square matrices, not of shape {matrices.shape}")
    if matrices.shape[1] < 2:
        raise ValueError("a transition matrix of one state has no wrong step: give at least two states")
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
    """K transition matrices [K, M', M'] and the constants that the theorems use."""

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
        """``rho`` of B."""
        return _gap(self.product)

    @property
    def condition_1(self) -> np.ndarray:
        """[M'] bool: whether the correct final state of this start is the likeliest one."""
        return self.product.argmax(axis=1) == self.correct[:, -1]


def _gap(matrix: np.ndarray) -> float:
    top = np.sort(matrix, axis=1)
    return float((1 - top[:, -2] / top[:, -1]).min())


SLIDES = Chain(np.array([[[0.6, 0.4], [0.4, 0.6]], [[0.4, 0.6], [0.8, 0.2]]]))


def chain_of(tau: float, rho: float, patterns: int, steps: int) -> Chain:
    """Steps with the τ and ρ specified: each row has an entry τ^(1/K), a runner-up (1 − ρ) times that, the rest even.

    There are at least three ``patterns``. ValueError if they are too few for τ and ρ.

    Reconstruction. Step k moves the correct state by k; the runner-up is next to it (mod M'). Where the remaining
    probability is below the runner-up's share, the runner-up gets all of it, and ρ exceeds the value specified.
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
    """Two steps whose correct final state is never the likeliest: it has .4 × .5 = .2, a wrong one .255 in total.

    ValueError for fewer than five patterns, where paths to the correct state meet.
    """
    if patterns < 5:
        raise ValueError(f"no chain over {patterns} patterns violates Condition 1 for every start: give patterns >= 5")
    first, second = np.zeros(patterns), np.zeros(patterns)
    first[:4], second[:3] = (0.4, 0.25, 0.2, 0.15), (0.5, 0.3, 0.2)
    return Chain(np.stack([[np.roll(law, i) for i in range(patterns)] for law in (first, second)]))


@lru_cache(maxsize=64)  # a config makes those of its studies each time it is checked
def output_chain_of(tau_o: float, rho_o: float, patterns: int, steps: int) -> Chain:
    """Steps of one law whose product B has the τ_o and ρ_o specified (reconstruction). ValueError if none is found."""

    def miss(entries: np.ndarray) -> list[float]:
        chain = chain_of(entries[0] ** steps, entries[1], patterns, steps)
        return [chain.tau_o - tau_o, chain.rho_o - rho_o]

    guess = np.array([tau_o ** (1 / steps), 1 - (1 - rho_o) / steps])
    solution = least_squares(miss, guess, bounds=([0.05, 0.0], [1.0, 1.0]), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    if np.abs(solution.fun).max() > 1e-6:
        raise ValueError(f"found no step matrices over {patterns} patterns with tau_o={tau_o:g} and rho_o={rho_o:g}")
    return chain_of(solution.x[0] ** steps, solution.x[1], patterns, steps)


@dataclass(frozen=True)
class TrainingBatch:
    """B prompts for each of R runs, by pattern index. Columns: K·l of the examples, then K−1 of the query's past steps.

    x, y [R, B, L] pattern indices of the halves; step [L]; query [R, B] pattern; query_step [R, B] the step to predict;
    target [R, B]; live [R, B, L] bool: the column exists.
    """

    x: Tensor
    y: Tensor
    step: Tensor
    query: Tensor
    query_step: Tensor
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
    """Prompts with an independent task each: ``steps`` of ``transitions`` [count, M], drawn uniformly.

    ``lengths`` [R] examples and ``alphas`` [R]: ⌈αl⌉ of a prompt's examples start from the query's pattern, the
    others uniformly from other patterns. The step to predict is uniform over 1 … K.
    """
    runs, longest, (count, M) = len(lengths), int(lengths.max()), transitions.shape
    query = torch.randint(M, (runs, batch, 1), generator=generator)
    other_patterns = (query + torch.randint(1, M, (runs, batch, longest), generator=generator)) % M
    index = torch.arange(longest)
    relevant = index < torch.ceil(alphas * lengths - 1e-9)[:, None, None]
    states = [torch.cat([torch.where(relevant, query, other_patterns), query], dim=2)]  # the query's chain comes last
    for _ in range(steps):
        task = torch.randint(count, (runs, batch, 1), generator=generator)
        states.append(transitions.flatten()[task * M + states[-1]])
    query_step = torch.randint(steps, (runs, batch), generator=generator)
    chain = torch.stack([state[..., -1] for state in states], dim=2)  # [R, B, K+1]
    present = (index < lengths[:, None, None]).expand(runs, batch, longest)
    past = torch.arange(steps - 1) < query_step[..., None]
    return TrainingBatch(
        x=torch.cat([*(state[..., :-1] for state in states[:-1]), chain[..., : steps - 1]], dim=2),
        y=torch.cat([*(state[..., :-1] for state in states[1:]), chain[..., 1:steps]], dim=2),
        step=torch.cat([torch.arange(steps).repeat_interleave(longest), torch.arange(steps - 1)]),
        query=chain.gather(2, query_step[..., None])[..., 0],
        query_step=query_step,
        target=chain.gather(2, query_step[..., None] + 1)[..., 0],
        live=torch.cat([present] * steps + [past], dim=2),
    )
