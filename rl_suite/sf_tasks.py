"""Families of tasks that share dynamics: reward r = φ·w.

Environments give φ itself as their reward, mo-gymnasium's convention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from rl_suite.factors import sizes_of

Info = dict[str, Any]


@dataclass(frozen=True)
class TransferMethod:
    """The quantity that an agent learns for each task, and its behaviour on a new task.

    ``features``: learns ψ_i [A, d] with Q = ψ_i·w, instead of Q_i [A]. ``gpi``: acts on the maximum over all tasks'
    values and has one approximator per task; without it, one approximator serves the tasks in turn. ``warm``: a new
    task starts from the last task's values. ``conditioned``: one network with w as an input.
    """

    features: bool = False
    gpi: bool = False
    warm: bool = True
    conditioned: bool = False


SF = TransferMethod(features=True, gpi=True)
SF_WARM = TransferMethod(features=True)  # one network, trained for the last task alone: no GPI, no network a task
Q_GPI = TransferMethod(gpi=True)
Q_WARM = TransferMethod()
Q_FRESH = TransferMethod(warm=False)
UVFA = TransferMethod(conditioned=True)


@dataclass(frozen=True)
class Family:
    """``make`` gives the environment, whose reward is φ [d]; ``train`` [n, d] and ``test`` [m, d] are weights.

    Agents that train in other processes need a ``make`` that can be pickled.
    """

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
    """(A, d) of an environment. Raises ValueError unless its actions are Discrete from 0 and its reward is a vector."""
    sizes = sizes_of(env.action_space)
    if not isinstance(env.action_space, spaces.Discrete):
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
    return sizes[0], int(reward.shape[0])


class GoalFeature(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """``four-room-v0`` with a fourth feature, 1 at the goal, where mo-gymnasium gives (1, 1, 1).

    As in Barreto et al. 2017, φ counts the three shapes and the goal, so that the goal has its own weight.
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
    """Barreto's four rooms: weights U(−1, 1) of the shapes, and 1 of the goal."""
    w = np.column_stack([rng.uniform(-1, 1, (tasks, 3)), np.ones(tasks)])
    return Family(_four_room, w, w)


def _four_room() -> gym.Env:
    return GoalFeature(make("four-room-v0"))


def reacher() -> Family:
    """``mo-reacher-v5``: training tasks reach one of four targets; test tasks approach three or avoid one.

    The test tasks are a reconstruction: the paper's test targets are not features of this environment. A policy that
    ignores w has a mean return of exactly 0 over them.
    """
    several = (1 - np.eye(4)) / 3
    return Family(partial(make, "mo-reacher-v5"), np.eye(4), np.concatenate([several, -np.eye(4)]))


def make(name: str) -> gym.Env:
    """An environment of mo-gymnasium. Raises ValueError if that is not installed."""
    try:
        import mo_gymnasium
    except ImportError as error:
        raise ValueError("mo-gymnasium is not installed: pip install 'iro-align[rl]'") from error
    return mo_gymnasium.make(name)


def scalar(env: gym.Env, w: np.ndarray) -> gym.Env:
    """``env`` with the scalar reward φ·w, for agents without features."""
    return gym.wrappers.TransformReward(env, lambda phi: float(np.asarray(phi) @ w))
