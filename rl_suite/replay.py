"""A ring buffer of transitions of parallel environments; n-step returns are computed when they are sampled."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Sample(NamedTuple):
    """N transitions and the n-step returns that begin with them.

    ``obs`` [N, D]; ``block_actions`` and ``propensity`` [N, B]; ``returns`` [N]: Σ γ^i r_i over n steps or to the
    end of the episode; ``discounts`` [N]: γ^n, 0 if terminated; ``last_obs`` [N, D]: the state after those steps;
    ``reward``, ``next_obs``, ``ended``: of the first step alone.
    """

    obs: Tensor
    block_actions: Tensor
    propensity: Tensor
    returns: Tensor
    discounts: Tensor
    last_obs: Tensor
    reward: Tensor
    next_obs: Tensor
    ended: Tensor


class Replay:
    """``capacity`` transitions of E environments: observations [D], block actions and their propensities [B]."""

    def __init__(self, capacity: int, envs: int, inputs: int, blocks: int) -> None:
        self.rows = max(capacity // envs, 1)
        shape = (self.rows, envs)
        self.data: dict[str, Tensor] = {
            "obs": torch.zeros(*shape, inputs),
            "next_obs": torch.zeros(*shape, inputs),
            "block_actions": torch.zeros(*shape, blocks, dtype=torch.long),
            "propensity": torch.ones(*shape, blocks),
            "rewards": torch.zeros(shape),
            "ended": torch.zeros(shape),  # 1: terminated
            "cut": torch.zeros(shape),  # 1: terminated or truncated
        }
        self.added = 0

    def add(
        self,
        obs: Tensor,
        block_actions: Tensor,
        propensity: Tensor,
        rewards: np.ndarray,
        next_obs: Tensor,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> None:
        """One transition of each environment. ``propensity`` [E, B]: with which each block's action was drawn."""
        row = self.added % self.rows
        ended = torch.from_numpy(terminated)
        cut = ended | torch.from_numpy(truncated)
        columns = (obs, next_obs, block_actions, propensity, torch.from_numpy(rewards), ended, cut)
        for column, value in zip(self.data.values(), columns, strict=True):
            column[row] = value
        self.added += 1

    def cut_newest(self) -> None:
        """End the returns of the newest transitions there: what is added next is of other episodes."""
        if self.added:
            self.data["cut"][(self.added - 1) % self.rows] = 1

    def sample(self, count: int, n_step: int, gamma: float, generator: torch.Generator) -> Sample:
        """``count`` uniform transitions. The newest n − 1 rows are not sampled: their returns are incomplete."""
        stored = min(self.added, self.rows)
        oldest = self.added - stored
        n_step = min(n_step, stored)
        envs = self.data["obs"].shape[1]
        row = oldest + torch.randint(stored - n_step + 1, (count, 1), generator=generator)
        env = torch.randint(envs, (count, 1), generator=generator)
        steps = torch.arange(n_step)
        flat_index = ((row + steps) % self.rows) * envs + env  # [count, n_step], in the flattened ring
        flat = {name: column.flatten(0, 1) for name, column in self.data.items()}
        cut = flat["cut"][flat_index]
        goes_on = torch.ones_like(cut)
        goes_on[:, 1:] = (1 - cut[:, :-1]).cumprod(dim=1)
        rewards = flat["rewards"][flat_index]
        length = goes_on.sum(dim=1)
        first, last = flat_index[:, 0], flat_index.gather(1, length.long()[:, None] - 1)[:, 0]
        returns = (rewards * goes_on) @ gamma**steps
        discounts = gamma**length * (1 - flat["ended"][last])
        return Sample(
            obs=flat["obs"][first],
            block_actions=flat["block_actions"][first],
            propensity=flat["propensity"][first],
            returns=returns,
            discounts=discounts,
            last_obs=flat["next_obs"][last],
            reward=rewards[:, 0],
            next_obs=flat["next_obs"][first],
            ended=flat["ended"][first],
        )

    def state_dict(self) -> dict[str, Any]:
        stored = min(self.added, self.rows)
        return {"added": self.added} | {name: data[:stored].clone() for name, data in self.data.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a replay that an earlier version saved."""
        if missing := sorted(self.data.keys() - state.keys()):
            raise ValueError(f"the replay has no {', '.join(missing)}: an earlier version saved it; train again")
        self.added = state["added"]
        for name, data in self.data.items():
            data[: len(state[name])] = state[name]
