"""Model-based learners from the same transitions: a law for each joint action, or an effect for each block's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl_suite.factors import Blocks, one_hot
from rl_suite.mdp import MDP, expected_return, greedy

Log = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # states, joint actions, rewards, next states: [N] each


def sample(mdp: MDP, behaviour: np.ndarray, n: int, rng: np.random.Generator) -> Log:
    """``n`` transitions from non-terminal states drawn evenly, actions from π_b [S, A], expected rewards."""
    states = rng.choice(np.flatnonzero(~mdp.terminal), n)
    actions = _draw(behaviour[states], rng)
    return states, actions, mdp.R[states, actions], _draw(mdp.P[states, actions], rng)


def _draw(laws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index a row of [N, M] probabilities."""
    below = laws.cumsum(axis=1)
    return (below < rng.random((len(laws), 1)) * below[:, -1:]).sum(axis=1)


def learned_q(
    log: Log, states: int, sizes: Sequence[int], blocks: Blocks, gamma: float, sweeps: int = 400
) -> np.ndarray:
    """Q [S, A] of the model that ``log`` supports: P and R additive over ``blocks``, by least squares in each state.

    With all factors in one block this is the joint model of counts. With several, regressing on all at once adjusts a
    block's effect for the others', whatever policy logged them (back-door). What was never seen is worth nothing.
    Raises ValueError for an empty log.
    """
    s, a, r, then = log
    if len(s) == 0:
        raise ValueError("the dataset is empty: a model needs at least one transition")
    design = one_hot(sizes, blocks)  # [A, C]
    outcome = np.zeros((states, len(design), states + 1))
    np.add.at(outcome, (s, a, then), 1.0)
    np.add.at(outcome, (s, a, np.full(len(s), states)), r)
    counts = outcome[:, :, :states].sum(axis=2)
    gram = np.einsum("ac,sa,ad->scd", design, counts, design)
    model = design @ np.linalg.pinv(gram, hermitian=True) @ np.einsum("ac,sat->sct", design, outcome)
    P, R = model[:, :, :states], model[:, :, states]
    value, top = np.zeros(states), max(r.max(), 0) / (1 - gamma)
    for _ in range(sweeps):
        value = np.clip((R + gamma * P @ value).max(axis=1), min(r.min(), 0) / (1 - gamma), top)
    return R + gamma * P @ value


def samples_needed(
    mdp: MDP, blocks: Blocks, optimal: float, epsilon: float, rng: np.random.Generator, most: int
) -> int:
    """The fewest transitions, on a grid of steps of √2, whose learned policy loses at most ``epsilon``·optimal.

    The behaviour is uniform. Gives ``most`` if that many do not do.
    """
    states, actions = mdp.R.shape
    behaviour = np.full((states, actions), 1 / actions)
    s, a, r, then = sample(mdp, behaviour, most, rng)
    for n in _grid(most):
        q = learned_q((s[:n], a[:n], r[:n], then[:n]), states, mdp.sizes, blocks, mdp.gamma)
        if expected_return(mdp, greedy(q)) >= (1 - epsilon) * optimal:
            return n
    return most


def _grid(most: int) -> list[int]:
    return [int(2 ** (half / 2)) for half in range(8, int(2 * np.log2(most)) + 1)]
