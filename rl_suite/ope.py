"""Off-policy evaluation on finite MDPs: weighted importance sampling with its effective sample size, and FQE."""

from __future__ import annotations

import numpy as np

from rl_suite.offline import Episodes


def soften(policy: np.ndarray, behaviour: np.ndarray, epsilon: float) -> np.ndarray:
    """(1 − ε) π + ε π_b [S, A], which gives every logged action a positive probability."""
    return (1 - epsilon) * policy + epsilon * behaviour


def wis(data: Episodes, policy: np.ndarray, gamma: float, clip: float = 1e3) -> tuple[float, float]:
    """The value of π [S, A] by weighted importance sampling of episodes, and Kish's effective sample size.

    Weights Π_t π(a_t|s_t)/π_b(a_t|s_t), cut at ``clip`` (as in Tang et al. 2022). ESS = (Σw)²/Σw². Raises ValueError
    where no episode has weight.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(policy[data.states, data.actions]) - np.log(data.propensity)
    weights = np.exp(np.minimum(np.bincount(data.episode, logs), np.log(clip)))
    if weights.sum() == 0:
        raise ValueError(
            "the behaviour policy has no support for this policy: no logged episode could be its; soften it, or"
            " raise the threshold"
        )
    value = (weights * data.returns(gamma)).sum() / weights.sum()
    return float(value), float(weights.sum() ** 2 / (weights**2).sum())


def fqe(data: Episodes, policy: np.ndarray, start: np.ndarray, gamma: float, sweeps: int = 300) -> float:
    """The value of π [S, A] from ``start`` [S] by fitted Q evaluation (Le et al. 2019) on a table.

    The fit of a table entry is a mean over the logged transitions. A pair that was never logged gets the mean over its
    state, and a state that was never logged the mean over all.
    """
    states, actions = policy.shape
    pair = data.states * actions + data.actions
    counts = np.bincount(pair, minlength=states * actions).reshape(states, actions)
    of_state = counts.sum(axis=1)
    q, goes_on = np.zeros((states, actions)), gamma * ~data.ended
    for _ in range(sweeps):
        next_values = (policy * q).sum(axis=1)[data.next_states]
        total = np.bincount(pair, data.rewards + goes_on * next_values, states * actions).reshape(states, actions)
        everywhere = total.sum() / len(pair)
        mean = np.where(of_state > 0, total.sum(axis=1) / np.maximum(of_state, 1), everywhere)
        q = np.where(counts > 0, total / np.maximum(counts, 1), mean[:, None])
    return float(start @ (policy * q).sum(axis=1))
