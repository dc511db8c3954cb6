"""DQN, DecQN and AD-DQN for Gymnasium environments with MultiDiscrete actions: learn, predict, save, load.

One agent class. A partition of the action factors gives each block a head Q_b(s, ·); a mixer combines them to Q(s, a).
DQN (Mnih et al. 2015) has all factors in one block. DecQN (Seyde et al. 2023) gives each its own and averages. AD-DQN
(arXiv:2504.21326, which has no public code: a reconstruction) also fits each head to the projected MDP of its block
under do(a_b), on real transitions with back-door weights (`backdoor.py`) and, with ``model``, on those of a learned
model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor
from torch.nn import functional as F

from rl_suite.backdoor import backdoor_weights
from rl_suite.callbacks import EpisodeStatistics
from rl_suite.factors import block_sizes, check_blocks, sizes_of
from rl_suite.networks import AgentConfig, QNet, WorldModel
from rl_suite.replay import Replay, Sample

Callback = Callable[["Agent"], bool | None]
"""Called after each step of the environments; learning ends where it returns False."""
SPACES = {
    "sizes": "an action space whose factors have sizes",
    "inputs": "an observation space whose number of inputs is",
    "envs": "environments whose number is",
}
"""What has to be the same where a saved agent goes on: keys of ``_check_spaces``, in words."""


class Agent:
    """``env``: a function that makes one environment (``config.envs`` of it are run), or a VectorEnv of many.

    Raises ValueError for a Box action space, an observation space of several parts, blocks that are no partition, a
    VectorEnv that does not reset itself within the step that ends an episode.
    """

    def __init__(self, env: Callable[[], gym.Env] | gym.vector.VectorEnv, config: AgentConfig) -> None:
        self.config = config
        self.envs = env if isinstance(env, gym.vector.VectorEnv) else _vectorise(env, config.envs)
        if self.envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise ValueError("the vector environment must give final_obs: make it with AutoresetMode.SAME_STEP")
        self._spaces = _check_spaces(self.envs)
        self.sizes, inputs = tuple(self._spaces["sizes"]), self._spaces["inputs"]
        self._discrete = isinstance(self.envs.single_action_space, spaces.Discrete)
        self.blocks = check_blocks(config.blocks, len(self.sizes))
        self.widths = block_sizes(self.sizes, self.blocks)
        self.generator = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.net, self.target = (QNet(inputs, self.widths, config) for _ in range(2))
            self.world = WorldModel(inputs, len(self.sizes), config.width) if config.model else None
        self.target.requires_grad_(False).load_state_dict(self.net.state_dict())
        self._modules: dict[str, Any] = {"net": self.net, "target": self.target}
        self._modules["optimiser"] = torch.optim.Adam(self.net.parameters(), config.lr, fused=True)
        if self.world is not None:
            self._modules["world"] = self.world
            self._modules["world_optimiser"] = torch.optim.Adam(self.world.parameters(), 1e-3, fused=True)
        self.replay = Replay(config.replay, self.envs.num_envs, inputs, len(self.blocks))
        self.steps = self.updates = 0
        self.episodes = EpisodeStatistics(self.envs.num_envs)
        self._loss = torch.tensor(math.nan)
        self._obs: Tensor | None = None
        self._explored_actions = torch.zeros(self.envs.num_envs, len(self.blocks), dtype=torch.long)
        self._remaining_hold = torch.zeros_like(self._explored_actions)  # steps left to hold each of them
        self._hold_epsilon = torch.ones(self._explored_actions.shape)  # ε when each of them was drawn

    @property
    def epsilon(self) -> float:
        """The share of steps on explored actions, from 1 down to the configuration's."""
        return 1 + (self.config.epsilon - 1) * min(1.0, self.steps / self.config.explore)

    @property
    def metrics(self) -> dict[str, float]:
        """Under SB3's names; means over the last episodes of this process, once one has ended."""
        metrics = {
            "time/total_timesteps": float(self.steps),
            "train/n_updates": float(self.updates),
            "rollout/exploration_rate": self.epsilon,
        }
        if self.updates:
            metrics["train/loss"] = float(self._loss)
        if self.episodes.returns:
            metrics["rollout/ep_rew_mean"] = float(np.mean(self.episodes.returns))
            metrics["rollout/ep_len_mean"] = float(np.mean(self.episodes.lengths))
        return metrics

    def learn(self, steps: int, callback: Callback | None = None) -> Agent:
        """Take at least ``steps`` more environment steps, or fewer where ``callback`` ends learning.

        After ``load`` it resumes bit-identically if the environment has state_dict and load_state_dict, as PointMasses
        has; other environments begin new episodes.
        """
        c = self.config
        if self._obs is None:
            # A loaded agent's new episodes are not those that it began with.
            seed = int(torch.randint(2**31, (1,), generator=self.generator)) if self.steps else c.seed
            self._obs = self._flat(self.envs.reset(seed=seed)[0])
        end = self.steps + steps
        while self.steps < end:
            block_actions, propensity = self._explore(self._obs)
            obs, rewards, terminated, truncated, info = self.envs.step(self._actions(block_actions))
            self.steps += self.envs.num_envs
            obs = self._flat(obs)
            next_obs = obs
            if "final_obs" in info:
                finished_envs = np.flatnonzero(info["_final_obs"])
                next_obs = obs.clone()
                next_obs[finished_envs] = self._flat(np.stack([info["final_obs"][i] for i in finished_envs]))
            self.replay.add(self._obs, block_actions, propensity, rewards, next_obs, terminated, truncated)
            self.episodes.add(rewards, terminated | truncated)
            self._obs = obs
            while self.steps >= c.start and self.updates < (self.steps - c.start) // c.train_every:
                self._update()
            goes_on = None if callback is None else callback(self)
            if goes_on is not None and not goes_on:  # NumPy's False is not Python's
                break
        return self

    @torch.no_grad()
    def predict(self, observations: np.ndarray) -> np.ndarray:
        """The greedy actions [N, K] for observations [N, …], or [K] for a single one."""
        space = self.envs.single_observation_space
        single = np.shape(observations) == space.shape
        batch = self._flat(np.asarray(observations)[None] if single else observations)
        actions = self._actions(self.net(batch)[0].argmax(dim=2))
        return actions[0] if single else actions

    def save(self, path: Path) -> None:
        """Save networks, optimisers, replay, random generators, and the state of environments that have state_dict."""
        saved: dict[str, Any] = {name: module.state_dict() for name, module in self._modules.items()}
        saved |= {"config": asdict(self.config), "generator": self.generator.get_state(), "obs": self._obs}
        saved |= {"steps": self.steps, "updates": self.updates, "replay": self.replay.state_dict()}
        saved |= {"held": self._explored_actions, "left": self._remaining_hold, "held_epsilon": self._hold_epsilon}
        saved["spaces"] = self._spaces
        if hasattr(self.envs, "state_dict"):
            saved |= {"envs": self.envs.state_dict(), "begun_episodes": self.episodes.begun()}
        torch.save(saved, path)

    @classmethod
    def load(cls, path: Path, env: Callable[[], gym.Env] | gym.vector.VectorEnv) -> Agent:
        """Raises ValueError where the saved agent is of other spaces than the environment or another number of them, or
        of an earlier version.
        """
        saved = torch.load(path, weights_only=True)
        if "spaces" not in saved:
            raise ValueError(f"an earlier version saved {path}: train again")
        config = AgentConfig(**saved["config"])
        envs = env if isinstance(env, gym.vector.VectorEnv) else _vectorise(env, config.envs)
        given = _check_spaces(envs)
        for key, meaning in SPACES.items():
            if given[key] != saved["spaces"][key]:
                raise ValueError(f"{path} was learnt on {meaning} {saved['spaces'][key]}, not {given[key]}")
        agent = cls(envs, config)
        agent.replay.load_state_dict(saved["replay"])
        for name, module in agent._modules.items():
            module.load_state_dict(saved[name])
        agent.generator.set_state(saved["generator"])
        agent.steps, agent.updates = saved["steps"], saved["updates"]
        if "envs" in saved and saved["obs"] is not None and hasattr(agent.envs, "load_state_dict"):
            agent.envs.reset(seed=0)
            agent.envs.load_state_dict(saved["envs"])
            agent._obs, agent._explored_actions, agent._remaining_hold, agent._hold_epsilon = (
                saved[name] for name in ("obs", "held", "left", "held_epsilon")
            )
            if "begun_episodes" in saved:  # an earlier version did not save it
                agent.episodes.resume(saved["begun_episodes"])
        else:
            agent.replay.cut_newest()
        return agent

    @torch.no_grad()
    def _explore(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Block actions [E, B], each random with probability ε, independently, else greedy; and their propensities.

        A propensity, ε/|A_b| and 1 − ε more for the greedy action, is the mean over the exploration's draws: it
        ignores that s shows which action is held. For a held action, ε is that of the step at which it was drawn.
        """
        c, shape = self.config, self._explored_actions.shape
        epsilon = self.epsilon
        mean = (c.hold + 1) / 2
        start = epsilon / (epsilon + (1 - epsilon) * mean)  # so that holds of ``mean`` steps take a share ε
        begins = (self._remaining_hold == 0) & (torch.rand(shape, generator=self.generator) < start)
        random_actions = (torch.rand(shape, generator=self.generator) * torch.tensor(self.widths)).long()
        hold_steps = torch.randint(1, c.hold + 1, shape, generator=self.generator)
        self._explored_actions = torch.where(begins, random_actions, self._explored_actions)
        self._remaining_hold = torch.where(begins, hold_steps, self._remaining_hold)
        self._hold_epsilon = torch.where(begins, epsilon, self._hold_epsilon)
        greedy, held = self.net(obs)[0].argmax(dim=2), self._remaining_hold > 0
        block_actions = torch.where(held, self._explored_actions, greedy)
        self._remaining_hold = (self._remaining_hold - 1).clamp(min=0)
        share = torch.where(held, self._hold_epsilon, epsilon)
        return block_actions, share / torch.tensor(self.widths) + (1 - share) * (block_actions == greedy)

    def _actions(self, block_actions: Tensor) -> np.ndarray:
        """Factor actions [N, K] of block actions [N, B]; [N] for a Discrete space."""
        actions = np.empty((len(block_actions), len(self.sizes)), np.int64)
        for b, block in enumerate(self.blocks):
            parts = np.unravel_index(block_actions[:, b].numpy(), [self.sizes[k] for k in block])
            for k, part in zip(block, parts, strict=True):
                actions[:, k] = part
        return actions[:, 0] if self._discrete else actions

    def _update(self) -> None:
        c = self.config
        if self.updates % c.target_every == 0:
            self.target.load_state_dict(self.net.state_dict())
        sample = self.replay.sample(c.batch, c.n_step, c.gamma, self.generator)
        heads, h = self.net(sample.obs)
        parts = heads.gather(2, sample.block_actions[:, :, None])[:, :, 0]  # Q_b(s, a_b) [N, B]
        values, mixed = self._bootstrap(sample.last_obs)
        loss = F.smooth_l1_loss(self.net.mix(parts, h), sample.returns + sample.discounts * mixed)
        if c.projected:
            loss = loss + self._projected_loss(sample, parts, h, values)
        if self.world is not None:
            weight = c.projected * len(self.blocks)  # undoes the mean over heads
            loss = loss + weight * self._model_loss(sample, heads)
        optimiser = self._modules["optimiser"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        self._loss = loss.detach()
        self.updates += 1

    def _projected_loss(self, sample: Sample, parts: Tensor, h: Tensor, values: Tensor) -> Tensor:
        """Each head's error under do(a_b), by back-door weights; and the fit of the policy that the weights refer to.

        The weights are of the first step's actions: like DecQN's, the rewards of an n-step return's later steps are
        those of the policy that acted.
        """
        log_reference = self.net.log_imitation(h, sample.block_actions)
        weights = backdoor_weights(log_reference.detach(), sample.propensity.log())
        targets = sample.returns[:, None] + sample.discounts[:, None] * values
        errors = F.smooth_l1_loss(parts, targets, reduction="none")
        return self.config.projected * (weights * errors).sum(dim=1).mean() - log_reference.mean()

    @torch.no_grad()
    def _bootstrap(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """The target network's head values [N, B] of the greedy actions, and their mixture [N]."""
        target_heads, h = self.target(s)
        best = (self.net(s)[0] if self.config.double else target_heads).argmax(dim=2, keepdim=True)
        values = target_heads.gather(2, best)[:, :, 0]
        return values, self.target.mix(values, h)

    def _model_loss(self, sample: Sample, heads: Tensor) -> Tensor:
        """Fit the model, then one head per row to its prediction for do(a_b): a_b random, the other blocks greedy."""
        assert self.world is not None
        s, actions = sample.obs, self._scaled(sample.block_actions)
        fit = self.world.loss(s, actions, sample.reward, sample.next_obs, sample.ended)
        optimiser = self._modules["world_optimiser"]
        optimiser.zero_grad()
        fit.backward()
        optimiser.step()
        n, rows = len(s), torch.arange(len(s))
        with torch.no_grad():
            b = torch.randint(len(self.blocks), (n,), generator=self.generator)
            a = (torch.rand(n, generator=self.generator) * torch.tensor(self.widths)[b]).long()
            intervened_actions = heads.argmax(dim=2)
            intervened_actions[rows, b] = a
            change, reward, end = self.world(s, self._scaled(intervened_actions))
            values = self._bootstrap(s + change * self.world.scale)[0][rows, b]
            target = reward + self.config.gamma * (1 - end.sigmoid()) * values
        return F.smooth_l1_loss(heads[rows, b, a], target)

    def _scaled(self, block_actions: Tensor) -> Tensor:
        """[N, K]: each factor's action from −1 to 1."""
        actions = torch.from_numpy(self._actions(block_actions)).reshape(len(block_actions), -1).float()
        return actions / (torch.tensor(self.sizes) - 1).clamp(min=1) * 2 - 1

    def _flat(self, observations: np.ndarray) -> Tensor:
        """Observations [N, D] float32; Discrete and MultiDiscrete ones are one-hot."""
        space = self.envs.single_observation_space
        if isinstance(space, spaces.Box):
            return torch.as_tensor(np.asarray(observations, np.float32)).reshape(
                len(observations), math.prod(space.shape)
            )
        return torch.as_tensor(
            np.stack([np.asarray(spaces.flatten(space, observation)) for observation in observations])
        ).float()


def _check_spaces(envs: gym.vector.VectorEnv) -> dict[str, Any]:
    """``SPACES`` of an environment. Raises ValueError for spaces that these agents do not take."""
    observations = envs.single_observation_space
    if not isinstance(observations, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(
            f"{type(observations).__name__} observation space: these agents need one vector; wrap the environment in"
            " gymnasium.wrappers.FlattenObservation"
        )
    sizes = list(sizes_of(envs.single_action_space))
    return {"sizes": sizes, "inputs": spaces.flatdim(observations), "envs": envs.num_envs}


def _vectorise(make: Callable[[], gym.Env], count: int) -> gym.vector.VectorEnv:
    return gym.vector.SyncVectorEnv([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)
