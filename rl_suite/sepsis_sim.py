"""A simulated sepsis patient, after the Gumbel-max SCM simulator of Oberst & Sontag (ICML 2019), with its exact MDP.

Written from the published transition structure. A state is (diabetic, heart rate, systolic pressure, oxygen, glucose;
antibiotics, ventilation, vasopressors at present), an action switches the three treatments. Given both, the four vital
signs change independently. Antibiotics act on heart rate and pressure, ventilation on oxygen alone, vasopressors on
pressure and (in diabetics) glucose: ventilation is a separate factor, the two others interact through the pressure.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl_suite.mdp import MDP

STATE = (2, 3, 3, 2, 5, 2, 2, 2)  # levels of each variable, in the order above
TREATMENTS = (2, 2, 2)
NORMAL = (1, 1, 1, 2)  # of the vital signs
HORIZON = 200
Info = dict[str, Any]


class SepsisSim(gym.Env[np.ndarray, np.ndarray]):
    """+1 on discharge (all vital signs normal, no treatment), −1 on death (three or four abnormal), 0 before.

    Observations are the eight variables, MultiDiscrete; actions (antibiotics, ventilation, vasopressors).
    """

    metadata: Info = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        self.observation_space = spaces.MultiDiscrete(np.array(STATE))
        self.action_space = spaces.MultiDiscrete(np.array(TREATMENTS))
        self._mdp = sepsis_mdp()
        self._rewards = arrival_rewards()
        self._state = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[np.ndarray, Info]:
        super().reset(seed=seed)
        self._state = int(self.np_random.choice(len(self._mdp.start), p=self._mdp.start))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Info]:
        joint = int(np.ravel_multi_index(tuple(action), TREATMENTS))
        self._state = int(self.np_random.choice(len(self._mdp.start), p=self._mdp.P[self._state, joint]))
        reward = float(self._rewards[self._state])
        return self._observation(), reward, reward != 0, False, {}

    def _observation(self) -> np.ndarray:
        return np.array(np.unravel_index(self._state, STATE))


def variables() -> np.ndarray:
    """[S, 8]: every state's variables."""
    return np.stack(np.unravel_index(np.arange(np.prod(STATE)), STATE), axis=1)


def arrival_rewards() -> np.ndarray:
    """[S]: the reward on entering a state, nonzero exactly where an episode ends."""
    v = variables()
    abnormal = (v[:, 1:5] != NORMAL).sum(axis=1)
    treated = v[:, 5:].any(axis=1)
    return np.where(abnormal >= 3, -1.0, 0.0) + ((abnormal == 0) & ~treated)


@cache
def sepsis_mdp(gamma: float = 0.99, diabetic: float = 0.2) -> MDP:
    """The exact MDP: 1440 states, 2×2×2 actions. ``diabetic``: the share of diabetic patients."""
    S, A = int(np.prod(STATE)), int(np.prod(TREATMENTS))
    P, v = np.zeros((S, A, S)), variables()
    ends = arrival_rewards()
    for s in np.flatnonzero(ends == 0):
        d, hr, bp, o2, glucose, abx, vent, vaso = v[s]
        for a, (on_abx, on_vent, on_vaso) in enumerate(np.ndindex(TREATMENTS)):
            laws = (
                _heart_rate(abx, on_abx)[hr],
                _pressure(d, abx, on_abx, vaso, on_vaso)[bp],
                _oxygen(vent, on_vent)[o2],
                _glucose(d, on_vaso)[glucose],
            )
            next_law = np.zeros(STATE)
            next_law[d, :, :, :, :, on_abx, on_vent, on_vaso] = np.einsum("i,j,k,l->ijkl", *laws)
            P[s, a] = next_law.reshape(-1)
    start = np.zeros(STATE)
    for d, share, sugar in (
        (0, 1 - diabetic, (0.05, 0.15, 0.6, 0.15, 0.05)),
        (1, diabetic, (0.01, 0.05, 0.15, 0.6, 0.19)),
    ):
        vitals = np.einsum("i,j,k,l->ijkl", (0.25, 0.5, 0.25), (0.25, 0.5, 0.25), (0.2, 0.8), sugar)
        start[d, :, :, :, :, 0, 0, 0] = share * np.where(ends.reshape(STATE)[d, :, :, :, :, 0, 0, 0] == 0, vitals, 0)
        start[d] *= share / start[d].sum()
    return MDP(P, P @ ends, start.reshape(-1), TREATMENTS, gamma)


def _moves(levels: int, *moves: tuple[int, int, float]) -> np.ndarray:
    """[levels, levels]: the identity law changed by ``moves`` (from, to, probability)."""
    law = np.eye(levels)
    for source, target, p in moves:
        law[source, source] -= p
        law[source, target] += p
    return law


@cache
def _drift(levels: int, p: float) -> np.ndarray:
    """Up and down by one with probability ``p`` each, within the levels."""
    up = [(i, i + 1, p) for i in range(levels - 1)]
    down = [(i, i - 1, p) for i in range(1, levels)]
    return _moves(levels, *up, *down)


@cache
def _antibiotics(was_on: int, on: int) -> np.ndarray:
    if on:
        return _moves(3, (2, 1, 0.5))
    return _moves(3, (1, 2, 0.1)) if was_on else np.eye(3)


@cache
def _heart_rate(was_on: int, on: int) -> np.ndarray:
    return _antibiotics(was_on, on) if was_on or on else _drift(3, 0.1)


@cache
def _vasopressors(diabetic: int, was_on: int, on: int) -> np.ndarray:
    if on and diabetic:
        return _moves(3, (1, 2, 0.9), (0, 1, 0.5), (0, 2, 0.4))
    if on:
        return _moves(3, (0, 1, 0.7), (1, 2, 0.7))
    falls = 0.05 if diabetic else 0.1
    return _moves(3, (1, 0, falls), (2, 1, falls)) if was_on else np.eye(3)


@cache
def _pressure(diabetic: int, abx: int, on_abx: int, vaso: int, on_vaso: int) -> np.ndarray:
    if not (abx or on_abx or vaso or on_vaso):
        return _drift(3, 0.1)
    return _antibiotics(abx, on_abx) @ _vasopressors(diabetic, vaso, on_vaso)


@cache
def _oxygen(was_on: int, on: int) -> np.ndarray:
    if on:
        return _moves(2, (0, 1, 0.7))
    return _moves(2, (1, 0, 0.1)) if was_on else _drift(2, 0.1)


@cache
def _glucose(diabetic: int, on_vaso: int) -> np.ndarray:
    """As in the paper's text; the released simulator holds a non-diabetic's rising glucose at level 1."""
    if on_vaso:
        return _moves(5, *((i, i + 1, 0.5) for i in range(4))) if diabetic else np.eye(5)
    return _drift(5, 0.3 if diabetic else 0.1)
