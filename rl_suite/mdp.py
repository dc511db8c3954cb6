"""Finite MDPs with factored actions, and their exact values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class MDP:
    """P [S, A, S] (zero rows: a terminal state), expected reward R [S, A], start [S], and |A_1|, …, |A_K|, C order.

    ``admissible`` [S, A] bool: the actions a policy may choose from.
    """

    P: np.ndarray
    R: np.ndarray
    start: np.ndarray
    sizes: tuple[int, ...]
    gamma: float
    admissible: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows = self.P.sum(axis=2)
        if self.P.shape[1] != math.prod(self.sizes):
            raise ValueError(f"{self.P.shape[1]} joint actions, but sizes {self.sizes} make {math.prod(self.sizes)}")
        if not np.all(np.isclose(rows, 1, atol=1e-6) | (rows == 0)) or self.P.min() < 0:
            raise ValueError("P[s, a] must be a distribution over next states, or all zero for a terminal state")

    @property
    def terminal(self) -> np.ndarray:
        """[S] bool."""
        return self.P.sum(axis=(1, 2)) == 0

    def q_of(self, values: np.ndarray) -> np.ndarray:
        """One Bellman back-up of V [S] to Q [S, A]."""
        return self.R + self.gamma * self.P @ values


def optimal_q(mdp: MDP, tolerance: float = 1e-13, mask: np.ndarray | None = None) -> np.ndarray:
    """Q* [S, A] by policy iteration, over the actions of ``mask`` [S, A] (default: those admissible)."""
    mask = mdp.admissible if mask is None else mask
    allowed = np.ones(mdp.R.shape, bool) if mask is None else mask
    policy = uniform(allowed)
    while True:
        q = mdp.q_of(policy_value(mdp, policy))
        policy_values = (q * policy).sum(axis=1)
        better = np.where(allowed, q, -np.inf)
        if np.all(better.max(axis=1) <= policy_values + tolerance * np.maximum(1, np.abs(policy_values))):
            return q
        policy = np.eye(q.shape[1])[better.argmax(axis=1)]


def policy_value(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """V^π [S] of π [S, A], exactly. Raises ValueError if γ is 1 and π may never reach a terminal state."""
    transitions = np.einsum("sa,sat->st", policy, mdp.P)
    if mdp.gamma == 1 and not np.all(_ends(transitions, mdp.terminal)):
        raise ValueError("γ is 1, and a policy to be evaluated may never end: give the MDP a γ below 1")
    return np.linalg.solve(np.eye(len(mdp.R)) - mdp.gamma * transitions, (policy * mdp.R).sum(axis=1))


def _ends(transitions: np.ndarray, terminal: np.ndarray) -> np.ndarray:
    """[S] bool: the states from which a terminal one can be reached, under transitions [S, S]."""
    reaching = terminal
    while not np.array_equal(wider := reaching | (transitions @ reaching > 0), reaching):
        reaching = wider
    return reaching


def expected_return(mdp: MDP, policy: np.ndarray) -> float:
    return float(mdp.start @ policy_value(mdp, policy))


def greedy(q: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The greedy policy [S, A] of Q [S, A], within ``mask`` [S, A]."""
    return np.eye(q.shape[1])[(q if mask is None else np.where(mask, q, -np.inf)).argmax(axis=1)]


def uniform(mask: np.ndarray) -> np.ndarray:
    """The policy that draws from ``mask`` [S, A] evenly."""
    return mask / mask.sum(axis=1, keepdims=True)


def product_mdp(
    rng: np.random.Generator, states: Sequence[int], sizes: Sequence[int], gamma: float = 0.9, joint_reward: float = 0.0
) -> MDP:
    """K independent MDPs in parallel with the sum of their rewards: Q of a factored policy is additive.

    ``joint_reward``: the scale of a random reward of the whole (s, a), which makes the factors interact.
    """
    P = [rng.dirichlet(np.ones(s), (s, a)) for s, a in zip(states, sizes, strict=True)]
    R = [rng.random((s, a)) for s, a in zip(states, sizes, strict=True)]
    n, a = math.prod(states), math.prod(sizes)
    joint = reduce(lambda x, y: np.einsum("sat,ubv->suabtv", x, y).reshape(_merged(x, y)), P)
    reward = reduce(lambda x, y: (x[:, None, :, None] + y[None, :, None, :]).reshape(len(x) * len(y), -1), R)
    reward = reward + joint_reward * rng.standard_normal((n, a))
    return MDP(joint, reward, np.full(n, 1 / n), tuple(sizes), gamma)


def _merged(x: np.ndarray, y: np.ndarray) -> tuple[int, ...]:
    return tuple(i * j for i, j in zip(x.shape, y.shape, strict=True))


def separable_mdp(
    rng: np.random.Generator, states: int, sizes: Sequence[int], gamma: float = 0.9, weight: float | None = None
) -> MDP:
    """Each factor adds an effect to the law of one shared state: P(·|s, a) = w Σ_k P_k(·|s, a_k) + (1 − wK) P_0(·|s).

    R likewise. ``weight``: w, at most the default 1/K.
    """
    weight = 1 / len(sizes) if weight is None else weight
    base_weight = 1 - weight * len(sizes)
    P, R = np.zeros((states, *sizes, states)), np.zeros((states, *sizes))
    for k, size in enumerate(sizes):
        shape = [states, *(size if j == k else 1 for j in range(len(sizes)))]
        P += weight * rng.dirichlet(np.full(states, 0.3), (states, size)).reshape(*shape, states)
        R += weight * rng.random((states, size)).reshape(shape)
    P, R = P.reshape(states, -1, states), R.reshape(states, -1)
    P += base_weight * rng.dirichlet(np.full(states, 0.3), states)[:, None]
    R += base_weight * rng.random(states)[:, None]
    return MDP(P, R, np.full(states, 1 / states), tuple(sizes), gamma)


def interacting_mdp(rng: np.random.Generator, states: int, sizes: Sequence[int], gamma: float = 0.9) -> MDP:
    """An MDP without factor structure: an independent law and reward for every (s, a)."""
    actions = math.prod(sizes)
    P, R = rng.dirichlet(np.full(states, 0.3), (states, actions)), rng.random((states, actions))
    return MDP(P, R, np.full(states, 1 / states), tuple(sizes), gamma)


def icu_sepsis() -> tuple[MDP, np.ndarray]:
    """ICU-Sepsis (Choudhary et al. 2024) from its package, 716 states and 5×5 doses, and the clinicians' policy [S, A].

    An inadmissible action has the mean effect of the admissible ones, as in the environment. γ = 1, reward 1 for
    survival.
    """
    try:
        from icu_sepsis.envs.sepsis import ICUSepsisEnv
    except ImportError as error:
        raise ValueError("icu-sepsis is not installed: pip install 'iro-align[rl]'") from error
    env = ICUSepsisEnv()
    dynamics = env.dynamics
    P, R = dynamics["tx_mat"].copy(), (dynamics["tx_mat"] * dynamics["r_mat"]).sum(axis=2)
    admissible = np.zeros(R.shape, bool)
    for state, actions in enumerate(dynamics["admissible_actions"]):
        admissible[state, actions] = True
    ends = [state for state in range(len(P)) if env._is_terminal_state(state)]
    P[ends], R[ends], admissible[ends] = 0, 0, True
    return MDP(P, R, dynamics["d_0"], (5, 5), 1.0, admissible), env.expert_policy
