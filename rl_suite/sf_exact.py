"""Successor features and generalised policy improvement (GPI) on finite MDPs, exactly.

Tasks share dynamics and features φ [S, A, d] and differ in w: reward φ·w, Q^π = ψ^π·w (Barreto et al. 2017,
arXiv:1606.05312; the bounds are its Theorems 1 and 2, restated by arXiv:2405.15920).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rl_suite.mdp import MDP, greedy, interacting_mdp, optimal_q, policy_value


def task(mdp: MDP, phi: np.ndarray, w: np.ndarray) -> MDP:
    """``mdp`` with reward φ·w. Raises ValueError unless w has one weight a feature."""
    if np.shape(w) != phi.shape[-1:]:
        raise ValueError(f"w of shape {np.shape(w)}: one weight for each of the {phi.shape[-1]} features is needed")
    return replace(mdp, R=phi @ w)


def successor_features(mdp: MDP, phi: np.ndarray, policy: np.ndarray) -> np.ndarray:
    """ψ^π [S, A, d] = E[Σ γ^t φ_t | s, a, then π], by one linear solve."""
    transitions = np.einsum("sa,sat->st", policy, mdp.P)
    value = np.linalg.solve(np.eye(len(phi)) - mdp.gamma * transitions, np.einsum("sa,sad->sd", policy, phi))
    return phi + mdp.gamma * mdp.P @ value


def q_of_policy(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Q^π [S, A]."""
    return mdp.q_of(policy_value(mdp, policy))


@dataclass(frozen=True)
class Transfer:
    """The result of GPI on one new task. Gaps are max over (s, a) of Q* − Q^π; a negative slack violates a bound.

    ``improvement``: of Q^π ≥ max_i Q^{π_i} − 2ε/(1−γ) (Theorem 1). ``loss``: of Q* − Q^π ≤
    2/(1−γ) (φ_max min_j‖w−w_j‖ + ε) (Theorem 2). ``exact``: of the same bound with 2γ/(1−γ), where ε = 0; else None.
    """

    sf_gpi: float
    dqn_gpi: float
    improvement: float
    loss: float
    exact: float | None


def transfer(
    mdp: MDP, phi: np.ndarray, task_weights: np.ndarray, w: np.ndarray, epsilon: float, rng: np.random.Generator
) -> Transfer:
    """GPI over the optimal policies of the tasks ``task_weights`` [n, d] on the new task ``w`` [d].

    ``epsilon``: the size of a uniform error added to each ψ_i·w. DQN-GPI acts on max_j Q_j, each Q_j for the reward of
    task j, like the paper's baseline.
    """
    tasks = [task(mdp, phi, weights) for weights in task_weights]
    optimal = np.stack([optimal_q(known_task) for known_task in tasks])  # [n, S, A]
    psi = np.stack([successor_features(mdp, phi, greedy(q)) for q in optimal])  # [n, S, A, d]
    new_task, q_old = task(mdp, phi, w), psi @ w  # [n, S, A]
    best = optimal_q(new_task)
    estimate = q_old + epsilon * rng.uniform(-1, 1, q_old.shape)
    reached = q_of_policy(new_task, greedy(estimate.max(axis=0)))
    reached_by_q = q_of_policy(new_task, greedy(optimal.max(axis=0)))
    nearest = np.linalg.norm(phi, axis=2).max() * np.linalg.norm(task_weights - w, axis=1).min()
    horizon, gap = 1 / (1 - mdp.gamma), float((best - reached).max())
    return Transfer(
        sf_gpi=gap,
        dqn_gpi=float((best - reached_by_q).max()),
        improvement=float((reached - q_old.max(axis=0)).min() + 2 * epsilon * horizon),
        loss=2 * horizon * (nearest + epsilon) - gap,
        exact=2 * mdp.gamma * horizon * nearest - gap if epsilon == 0 else None,
    )


def random_family(
    rng: np.random.Generator, states: int, actions: int, features: int, tasks: int, gamma: float
) -> tuple[MDP, np.ndarray, np.ndarray, np.ndarray]:
    """A random MDP, φ [S, A, d] ~ U(0, 1), known tasks [n, d] and a new one [d] ~ N(0, 1)."""
    mdp = interacting_mdp(rng, states, (actions,), gamma)
    weights = rng.standard_normal((tasks + 1, features))
    return mdp, rng.random((states, actions, features)), weights[:-1], weights[-1]


def distance_study(
    rng: np.random.Generator, distances: np.ndarray, repeats: int, sizes: tuple[int, int, int], gamma: float
) -> list[dict[str, float]]:
    """Mean gaps of one task's policy, and of its Q as an estimate, on tasks at distance ‖Δw‖."""
    rows = []
    for distance in distances:
        gaps = []
        for _ in range(repeats):
            mdp, phi, raw_weights, direction = random_family(rng, *sizes, 1, gamma)
            known_weights = raw_weights / np.linalg.norm(raw_weights)
            w = known_weights[0] + distance * direction / np.linalg.norm(direction)
            old_q, new_q = optimal_q(task(mdp, phi, known_weights[0])), optimal_q(task(mdp, phi, w))
            gaps.append([transfer(mdp, phi, known_weights, w, 0.0, rng).sf_gpi, np.abs(new_q - old_q).max()])
        gap, change = np.mean(gaps, axis=0)
        rows.append({"distance": float(distance), "sf_gpi": float(gap), "q": float(change)})
    return rows
