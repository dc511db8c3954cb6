"""What ``Agent.learn`` calls after each step of its environments: TensorBoard, or a function of one's own."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Protocol

import numpy as np
from tensorboardX import SummaryWriter

EPISODES = 100  # that means are over


class EpisodeStatistics:
    """Returns and lengths of the last ``EPISODES`` episodes of parallel environments."""

    def __init__(self, envs: int) -> None:
        self._returns, self._lengths = np.zeros(envs), np.zeros(envs, np.int64)
        self.returns: deque[float] = deque(maxlen=EPISODES)
        self.lengths: deque[int] = deque(maxlen=EPISODES)

    def begun(self) -> tuple[list[float], list[int]]:
        """Rewards and steps so far of the episode that each environment is in: the argument of ``resume``."""
        return self._returns.tolist(), self._lengths.tolist()

    def resume(self, begun: tuple[list[float], list[int]]) -> None:
        self._returns, self._lengths = (np.array(sums) for sums in begun)

    def add(self, rewards: np.ndarray, ended: np.ndarray) -> None:
        """A step of all environments: rewards [E], and whether each one's episode ends with it."""
        self._returns += rewards
        self._lengths += 1
        for i in np.flatnonzero(ended):
            self.returns.append(float(self._returns[i]))
            self.lengths.append(int(self._lengths[i]))
        self._returns[ended] = self._lengths[ended] = 0


class Learner(Protocol):
    """What is read of an agent."""

    steps: int

    @property
    def metrics(self) -> dict[str, float]: ...


class TensorBoard:
    """Writes ``agent.metrics`` into ``folder`` every ``every`` environment steps, under the names that SB3 gives them.

    A context manager; ``close`` flushes.
    """

    def __init__(self, folder: Path | str, every: int = 1000) -> None:
        self._writer = SummaryWriter(str(folder))
        self._every, self._next = every, 0

    def __call__(self, agent: Learner) -> None:
        if agent.steps < self._next:
            return
        self._next = agent.steps + self._every
        for name, value in agent.metrics.items():
            self._writer.add_scalar(name, value, agent.steps)

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
