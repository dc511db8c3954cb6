"""SF-DQN with GPI (arXiv:2405.15920) and its baselines DQN-GPI, warm-started DQN and UVFA, on one learner.

Read ``update`` first. Targets and behaviour follow public implementations of the algorithm. Reconstruction: DQN-GPI's
targets (from Q_i, double DQN), relabelling the replay for every task, starting a task from the last task's network, and
UVFA's goals (w).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from rl_suite.sf_networks import StackedMLP
from rl_suite.sf_replay import Batch, Replay
from rl_suite.sf_tasks import SF, TransferMethod, check_env, check_weights

PARTS = ("net", "target", "optimiser", "replay")
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class DQNSettings:
    """``update_every``: transitions per update; ``target_every``: updates between copies to the target networks.

    ``learn_w``: w starts at 0 and follows r = φ·w by w ← w + ``w_rate`` (r − φ·w) φ. Raises ValueError
    (pydantic's) for values out of range and a ``capacity`` below ``learning_starts``, with which nothing is learnt.
    """

    hidden: tuple[PositiveInt, ...] = (256, 256)
    gamma: Share = 0.9
    epsilon: Share = 0.1
    rate: PositiveFloat = 1e-3
    batch: PositiveInt = 32
    capacity: PositiveInt = 200_000
    learning_starts: NonNegativeInt = 200
    update_every: PositiveInt = 1
    target_every: PositiveInt = 200
    learn_w: bool = False
    w_rate: NonNegativeFloat = 0.05

    def __post_init__(self) -> None:
        if self.capacity < self.learning_starts:
            raise ValueError(
                f"a replay of {self.capacity} never holds the {self.learning_starts} transitions after which learning"
                " starts: give more capacity, or fewer learning_starts"
            )


class DQNAgent:
    """Learns the tasks ``weights`` [n, d] one after another on an environment whose reward is φ [d].

    Raises ValueError for an action space that is not Discrete, a scalar reward, weights of another length,
    ``learn_w`` without features, or ``Q_FRESH``.
    """

    def __init__(
        self,
        env: gym.Env,
        weights: ArrayLike,
        method: TransferMethod = SF,
        settings: DQNSettings | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.actions, d = check_env(env)
        self.env, self.method, self.settings = env, method, settings or DQNSettings()
        self.true_weights = check_weights(weights, d)
        if not (method.warm or method.gpi):
            raise ValueError("one network that starts afresh at each task is a new DQNAgent a task: make those instead")
        if self.settings.learn_w and not method.features:
            raise ValueError("learn_w needs features: only ψ_i·w has a w to learn; leave it off for the baselines")
        self.rng = np.random.default_rng(seed)
        observation = int(np.prod(env.observation_space.shape or (1,)))
        self.width = d if method.features else 1
        n = len(self.true_weights) if method.gpi else 1
        sizes = (observation + d * method.conditioned, *self.settings.hidden, self.actions * self.width)
        generator = torch.Generator().manual_seed(int(self.rng.integers(2**31)))
        self.net = StackedMLP(n, sizes, generator)
        self.target = StackedMLP(n, sizes, generator).requires_grad_(False)
        self.target.load_state_dict(self.net.state_dict())
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=self.settings.rate, fused=True)
        self.replay = Replay(self.settings.capacity, observation, d)
        self.w = torch.zeros(self.true_weights.shape) if self.settings.learn_w else _tensor(self.true_weights)
        self.begun = self.updates = 0

    def learn(self, task: int, steps: int, on_step: Callable[[], None] | None = None) -> list[float]:
        """Learn from ``steps`` transitions of task ``task``, from a new episode; gives the returns of full episodes.

        Tasks begin in order. Raises ValueError otherwise.
        """
        self._begin(task)
        update_every, w_true = self.settings.update_every, self.true_weights[task]
        s = _flat(self.env.reset(seed=int(self.rng.integers(2**31)))[0])
        returns, collected = [], 0.0
        for t in range(steps):
            a = self._explore(s, task)
            observation, phi, terminated, truncated, _ = self.env.step(a)
            next_s, phi = _flat(observation), np.asarray(phi, np.float32)
            self.replay.add(s, a, phi, next_s, terminated)
            reward = float(phi @ w_true)
            collected += reward
            if self.settings.learn_w:
                phi_tensor = _tensor(phi)
                self.w[task] += self.settings.w_rate * (reward - phi_tensor @ self.w[task]) * phi_tensor
            if t % update_every == 0 and len(self.replay) >= self.settings.learning_starts:
                self.update(self.replay.sample(self.settings.batch, self.rng))
            s = next_s
            if terminated or truncated:
                s = _flat(self.env.reset()[0])
                returns.append(collected)
                collected = 0.0
            if on_step is not None:
                on_step()
        return returns

    @torch.no_grad()
    def predict(self, observations: np.ndarray, w: ArrayLike) -> np.ndarray:
        """Greedy actions [B] for observations [B, S] under weights [B, d], one task per row.

        SF-DQN: max_i ψ_i·w. DQN-GPI: max_i Q_i for any w. Warm-started DQN: the last task's Q. UVFA: Q(·, w).
        Raises ValueError before a task has begun, and for another number of weights than of observations.
        """
        weights = _tensor(check_weights(w, self.true_weights.shape[1]))
        if not self.begun:
            raise ValueError("no task has begun: call learn first")
        if len(observations) != len(weights):
            raise ValueError(f"{len(observations)} observations, {len(weights)} rows of w: give one row an observation")
        s = _tensor(observations).reshape(len(weights), -1)
        if self.method.conditioned:
            values = self.net(torch.cat([s, weights], 1), 1)[0]
        else:
            heads = self._heads(self.net, s, weights)  # [n, B, A, width]
            values = ((heads * weights[None, :, None]).sum(3) if self.method.features else heads[..., 0]).amax(0)
        return values.argmax(1).numpy()

    def save(self, path: Path) -> None:
        """Save the complete state: networks, optimiser, replay, w and the generator."""
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in PARTS}
        state |= {"w": self.w, "begun": self.begun, "updates": self.updates, "rng": self.rng.bit_generator.state}
        torch.save(state | {"made_with": self._arguments()}, path)

    def load(self, path: Path) -> None:
        """Restore what ``save`` wrote. Raises ValueError if that agent had other arguments."""
        state = torch.load(path, weights_only=True)
        if state["made_with"] != self._arguments():
            raise ValueError(f"{path} holds an agent made with {state['made_with']}, not {self._arguments()}")
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.w, self.begun, self.updates = state["w"], state["begun"], state["updates"]
        self.rng.bit_generator.state = state["rng"]

    def update(self, batch: Batch) -> float:
        """One step of Adam on all tasks of ``_current`` in one batched call; gives the loss."""
        w = self.w[self._current()]  # [m, d]
        with torch.no_grad():
            target = self._targets(batch, w)  # [m, B, width]
        picked = batch.a[None, :, None, None].expand(len(w), -1, 1, self.width)
        predicted = self._heads(self.net, batch.s, w).gather(2, picked)[:, :, 0]
        loss = (predicted - target).square().mean(dim=(1, 2)).sum()  # each task has the gradient of a separate fit
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.updates += 1
        if self.updates % self.settings.target_every == 0:
            self.target.load_state_dict(self.net.state_dict())
        return float(loss.detach())

    def _targets(self, batch: Batch, w: torch.Tensor) -> torch.Tensor:
        """[m, B, width]: φ + γ ψ̄_i(s', a*), a* = argmax_a max_j ψ_j(s', a)·w_i. Without features r_i and Q_i alone."""
        online = self._heads(self.net, batch.next_s, w)  # [j, B, A, width]
        if self.method.features:
            cumulant = batch.phi[None]
            values = torch.einsum("jbad,id->jiba", online, w).amax(0)  # [i, B, A]
        else:
            cumulant = (w @ batch.phi.T)[:, :, None]
            values = online[..., 0]
        best = values.argmax(2)[:, :, None, None].expand(-1, -1, 1, self.width)
        after = self._heads(self.target, batch.next_s, w).gather(2, best)[:, :, 0]
        return cumulant + self.settings.gamma * batch.goes_on[None, :, None] * after

    def _heads(self, net: StackedMLP, s: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """[m, B, A, width] at states [B, S]: of the networks begun, or of one network given each of w [m, d]."""
        if self.method.conditioned:
            m, b = len(w), len(s)
            x = torch.cat([s.expand(m, -1, -1), w[:, None].expand(-1, b, -1)], 2)
            out = net(x.reshape(1, m * b, -1), 1).reshape(m, b, -1)
        else:
            out = net(s, self.begun if self.method.gpi else 1)
        return out.unflatten(2, (self.actions, self.width))

    def _current(self) -> slice:
        """The tasks of an update: all begun, or only the last where one network serves the tasks in turn."""
        return slice(0 if self.method.gpi or self.method.conditioned else self.begun - 1, self.begun)

    def _explore(self, s: np.ndarray, task: int) -> int:
        if self.rng.random() < self.settings.epsilon:
            return int(self.rng.integers(self.actions))
        return int(self.predict(s[None], self.w[task][None].numpy())[0])

    def _begin(self, task: int) -> None:
        if task not in (self.begun - 1, self.begun) or task >= len(self.true_weights):
            raise ValueError(f"task {task}: tasks are learnt in order, and {self.begun} of them have begun")
        if task == self.begun:
            self.begun += 1
            if self.method.gpi and self.method.warm and task:
                self.net.copy_network(task - 1, task)
                self.target.copy_network(task - 1, task)
                for parameter in self.optimiser.state.values():
                    for moment in (parameter["exp_avg"], parameter["exp_avg_sq"]):
                        moment[task] = moment[task - 1]

    def _arguments(self) -> dict[str, Any]:
        settings = asdict(self.settings) | {"hidden": list(self.settings.hidden)}
        return {"method": asdict(self.method), "weights": self.true_weights.tolist(), "settings": settings}


def _flat(observation: np.ndarray) -> np.ndarray:
    return np.asarray(observation, np.float32).reshape(-1)


def _tensor(array: ArrayLike) -> torch.Tensor:
    return torch.as_tensor(np.asarray(array, np.float32))
