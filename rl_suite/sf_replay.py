"""A ring buffer of transitions (s, a, φ, s', terminated); rewards follow from w."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch


class Batch(NamedTuple):
    s: torch.Tensor  # [B, S]
    a: torch.Tensor  # [B]
    phi: torch.Tensor  # [B, d]
    next_s: torch.Tensor  # [B, S]
    goes_on: torch.Tensor  # [B], 0 where the episode terminated


class Replay:
    def __init__(self, capacity: int, observation: int, features: int) -> None:
        self.rows = torch.zeros(capacity, 2 * observation + features + 2)
        self._array = self.rows.numpy()
        self._widths = (observation, 1, features, observation, 1)
        self.added = 0

    def __len__(self) -> int:
        return min(self.added, len(self.rows))

    def add(self, s: np.ndarray, a: int, phi: np.ndarray, next_s: np.ndarray, terminated: bool) -> None:
        self._array[self.added % len(self.rows)] = np.concatenate([s, [a], phi, next_s, [not terminated]])
        self.added += 1

    def sample(self, n: int, rng: np.random.Generator) -> Batch:
        """``n`` transitions, drawn evenly with replacement. Raises ValueError if there are none."""
        if not len(self):
            raise ValueError("the replay is empty: add transitions, or call learn, before an update")
        s, a, phi, next_s, goes_on = self.rows[rng.integers(len(self), size=n)].split(self._widths, dim=1)
        return Batch(s, a[:, 0].long(), phi, next_s, goes_on[:, 0])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows[: len(self)].clone(), "added": self.added}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows[: len(state["rows"])] = state["rows"]
        self.added = state["added"]
