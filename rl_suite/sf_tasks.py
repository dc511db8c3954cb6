"""Families of tasks that share dynamics: reward r = φ·w.

Environments give φ itself as their reward, mo-gymnasium's convention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from rl_suite.factors import sizes_of

Info = dict[str, Any]


@dataclass(frozen=True)
class TransferMethod:
    """What an agent learns for each task and how it acts on a new one.

    ``features``: ψ_i [A, d] and Q = ψ_i·w, where the others learn Q_i [A] itself. ``gpi``: acts on the best of all
    tasks' values, and keeps one approximator a task; without it there is one, that moves from task to task. ``warm``: a
    new task starts from the last one's values. ``conditioned``: one network that reads w beside the observation.
    """

    features: bool = False
    gpi: bool = False
    warm: bool = True
    conditioned: bool = False


SF = TransferMethod(features=True, gpi=True)
Q_GPI = TransferMethod(gpi=True)
Q_WARM = TransferMethod()
Q_FRESH = TransferMethod(warm=False)
UVFA = TransferMethod(conditioned=True)


@dataclass(frozen=True)
class Family:
    """``make`` gives the environment, whose reward is φ [d]; ``train`` [n, d] and ``test`` [m, d] are weights."""

    make: Callable[[], gym.Env]
    train: np.ndarray
    test: np.ndarray


def check_weights(weights: ArrayLike, features: int) -> np.ndarray:
    """``weights`` as [n, d]. Raises ValueError unless there is one weight a feature, all finite."""
    rows = np.asarray(weights, float)
    if rows.ndim != 2 or rows.shape[1] != features or len(rows) == 0:
        raise ValueError(f"w of shape {rows.shape}: [tasks, {features}] is needed, one weight a feature")
    if not np.isfinite(rows).all():
        raise ValueError("w must be finite")
    return rows


def check_env(env: gym.Env) -> tuple[int, int]:
    """(A, d) of an environment. Raises ValueError unless its actions are Discrete and its reward is a vector."""
    if not isinstance(env.action_space, spaces.Discrete):
        sizes_of(env.action_space)
        raise ValueError(
            "MultiDiscrete action space: these agents choose one of A actions; flatten it to Discrete first"
        )
    try:
        reward = env.get_wrapper_attr("reward_space")
    except AttributeError:
        raise ValueError(
            f"{type(env.unwrapped).__name__} has no reward_space: the reward must be the feature vector φ"
            " (mo-gymnasium's convention)"
        ) from None
    return int(env.action_space.n), int(reward.shape[0])


class GoalFeature(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """``four-room-v0`` with a fourth feature, 1 at the goal, where mo-gymnasium gives (1, 1, 1).

    As in Barreto et al. 2017: φ counts the three shapes and the goal, so the goal is worth what its own weight says.
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.reward_space = spaces.Box(0, 1, (4,), np.float32)
        self.reward_dim = 4

    def step(self, action: int) -> tuple[np.ndarray, np.ndarray, bool, bool, Info]:
        observation, phi, terminated, truncated, info = self.env.step(action)
        extended = np.zeros(4, np.float32)
        if terminated:
            extended[3] = 1
        else:
            extended[:3] = phi
        return observation, extended, terminated, truncated, info


def four_room(rng: np.random.Generator, tasks: int) -> Family:
    """Barreto's four rooms: shapes worth U(−1, 1) each, the goal 1."""
    w = np.column_stack([rng.uniform(-1, 1, (tasks, 3)), np.ones(tasks)])
    return Family(lambda: GoalFeature(make("four-room-v0")), w, w)


def reacher() -> Family:
    """``mo-reacher-v5``: reach one of four targets in training; then serve three at once, or keep away from one.

    The test tasks are ours: the targets that the paper tests on are not among the environment's features. A policy that
    ignores w has a mean return of exactly 0 over them.
    """
    several = (1 - np.eye(4)) / 3
    return Family(lambda: make("mo-reacher-v5"), np.eye(4), np.concatenate([several, -np.eye(4)]))


def make(name: str) -> gym.Env:
    """An environment of mo-gymnasium. Raises ValueError if that is not installed."""
    try:
        import mo_gymnasium
    except ImportError as error:
        raise ValueError("mo-gymnasium is not installed: pip install 'iro[rl]'") from error
    return mo_gymnasium.make(name)


def scalar(env: gym.Env, w: np.ndarray) -> gym.Env:
    """``env`` with reward φ·w, for agents that know nothing of features."""
    return gym.wrappers.TransformReward(env, lambda phi: float(np.asarray(phi) @ w))
