"""Tabular SFQL with GPI, and Q-learning with GPI, warm-started or fresh: the tables of all tasks in one array.

Barreto et al. 2017 (arXiv:1606.05312), as arXiv:2405.15920 states it: act ε-greedily on max_i ψ_i·w; target
φ + γ ψ_i(s', a*), a* = argmax_a max_j ψ_j(s', a)·w_i. Every transition updates every task begun, in one
batched expression.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike

from rl_suite.sf_tasks import SF, TransferMethod, check_env, check_weights


class TabularAgent:
    """States are the distinct observations, numbered in order of appearance; the table grows with them.

    ``weights`` [n, d]: the tasks, learnt in order. Raises ValueError for an action space that is not Discrete, a scalar
    reward, weights of another length, or UVFA.
    """

    def __init__(
        self,
        env: gym.Env,
        weights: ArrayLike,
        method: TransferMethod = SF,
        *,
        alpha: float = 0.5,
        gamma: float = 0.95,
        epsilon: float = 0.15,
        seed: int = 0,
    ) -> None:
        self.actions, d = check_env(env)
        if method.conditioned:
            raise ValueError("a table cannot read w: UVFA needs the networks of DQNAgent")
        self.env, self.method, self.alpha, self.gamma, self.epsilon = env, method, alpha, gamma, epsilon
        self.weights = check_weights(weights, d)
        self.rng = np.random.default_rng(seed)
        self.states: dict[bytes, int] = {}
        self.begun = 0  # number of tasks begun
        slots, width = (len(self.weights) if method.gpi else 1), (d if method.features else 1)
        self.table = np.zeros((1024, slots, self.actions, width))

    def learn(self, task: int, steps: int) -> float:
        """Learn from ``steps`` transitions of task number ``task``, from a new episode; gives the reward collected.

        Tasks begin in order. Raises ValueError otherwise.
        """
        self._begin(task)
        updated_tasks, w, random = self._updated_tasks(task), self.weights[task], self.rng.random
        state = self._index(self.env.reset(seed=int(self.rng.integers(2**31)))[0])
        collected = 0.0
        for _ in range(steps):
            explores = random() < self.epsilon
            action = int(random() * self.actions) if explores else self._greedy(self.table[state], w)
            observation, phi, terminated, truncated, _ = self.env.step(action)
            next_state = self._index(observation)
            self._update(state, action, np.asarray(phi, float), next_state, terminated, updated_tasks)
            collected += float(phi @ w)
            state = self._index(self.env.reset()[0]) if terminated or truncated else next_state
        return collected

    def predict(self, observation: ArrayLike, w: ArrayLike) -> int:
        """The greedy action for weights ``w`` [d], uniform in a state never visited.

        Raises ValueError before a task has begun.
        """
        if not self.begun:
            raise ValueError("no task has begun: call learn first")
        weights = check_weights(np.asarray(w)[None], self.weights.shape[1])[0]
        index = self.states.get(self._key(observation))
        row = np.zeros(self.table.shape[1:]) if index is None else self.table[index]
        return self._greedy(row, weights)

    def save(self, path: Path) -> None:
        """Save the complete state: tables, states and the generator."""
        torch.save(
            {
                "table": torch.from_numpy(self.table[: len(self.states)].copy()),
                "states": list(self.states),
                "begun": self.begun,
                "rng": self.rng.bit_generator.state,
                "made_with": self._arguments(),
            },
            path,
        )

    def load(self, path: Path) -> None:
        """Restore what ``save`` wrote. Raises ValueError if that agent had other arguments."""
        saved = torch.load(path, weights_only=True)
        made_with = saved.get("made_with", "an earlier version")
        if made_with != self._arguments():
            raise ValueError(f"{path} holds an agent made with {made_with}, not {self._arguments()}")
        table = saved["table"].numpy()
        self.table = np.concatenate([table, np.zeros((max(len(table), 1024), *table.shape[1:]))])
        self.states = {key: i for i, key in enumerate(saved["states"])}
        self.begun = saved["begun"]
        self.rng.bit_generator.state = saved["rng"]

    def _arguments(self) -> dict[str, Any]:
        rates = {"alpha": self.alpha, "gamma": self.gamma, "epsilon": self.epsilon}
        return {"method": asdict(self.method), "weights": self.weights.tolist(), "actions": self.actions} | rates

    def _begin(self, task: int) -> None:
        if task not in (self.begun - 1, self.begun) or task >= len(self.weights):
            raise ValueError(f"task {task}: tasks are learnt in order, and {self.begun} of them have begun")
        if task == self.begun:
            if not self.method.warm:
                self.table[:] = 0
            elif self.method.gpi and task:
                self.table[:, task] = self.table[:, task - 1]
            self.begun += 1

    def _updated_tasks(self, task: int) -> slice:
        """The tasks that a transition updates."""
        return slice(0, task + 1) if self.method.gpi else slice(task, task + 1)

    def _key(self, observation: ArrayLike) -> bytes:
        return np.asarray(observation, self.env.observation_space.dtype).tobytes()

    def _index(self, observation: ArrayLike) -> int:
        index = self.states.setdefault(self._key(observation), len(self.states))
        if index == len(self.table):
            self.table = np.concatenate([self.table, np.zeros_like(self.table)])
        return index

    def _greedy(self, row: np.ndarray, w: np.ndarray) -> int:
        """max_i ψ_i·w over row [slots, A, d], ties broken evenly."""
        row = row[: self.begun]
        values = (row @ w if self.method.features else row[..., 0]).max(axis=0)
        best = np.flatnonzero(values == values.max())
        return int(best[int(self.rng.random() * len(best))])

    def _update(self, s: int, a: int, phi: np.ndarray, next_state: int, terminated: bool, updated_tasks: slice) -> None:
        w = self.weights[updated_tasks]  # [m, d]
        m = len(w)
        target = np.broadcast_to(phi, w.shape) if self.method.features else (w @ phi)[:, None]
        if not terminated:
            after = self.table[next_state, :m]  # [m, A, d]
            values = (after @ w.T).max(axis=0).T if self.method.features else after[..., 0]  # [i, A]
            best = values.argmax(axis=1)
            target = target + self.gamma * after[np.arange(m), best]
        row = self.table[s, :m, a]
        row += self.alpha * (target - row)
