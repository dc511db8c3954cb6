"""DecQN as one plain loop in the style of CleanRL, with one environment: the baseline for the speed of `agents.py`.

Network, loss, batch and updates per environment step are the same; returns are one-step.
"""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
import torch
from torch.nn import functional as F

from rl_suite.networks import AgentConfig, QNet


def run_loop(env: gym.Env[np.ndarray, np.ndarray], config: AgentConfig, steps: int) -> float:
    """Train for ``steps`` environment steps, and give environment steps per second after ``config.start``."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    sizes = tuple(int(n) for n in env.action_space.nvec)  # type: ignore[attr-defined]
    inputs = int(np.prod(env.observation_space.shape or ()))
    net, target = QNet(inputs, sizes, config), QNet(inputs, sizes, config)
    target.load_state_dict(net.state_dict())
    optimiser = torch.optim.Adam(net.parameters(), lr=config.lr)
    obs_held, next_obs_held = (np.zeros((config.replay, inputs), np.float32) for _ in range(2))
    actions_held = np.zeros((config.replay, len(sizes)), np.int64)
    reward_held, ended_held = (np.zeros(config.replay, np.float32) for _ in range(2))

    obs, _ = env.reset(seed=config.seed)
    began, updates = time.perf_counter(), 0
    for step in range(steps):
        if step == config.start:
            began = time.perf_counter()
        epsilon = 1 + (config.epsilon - 1) * min(1.0, step / config.explore)
        with torch.no_grad():
            action = net(torch.from_numpy(obs)[None])[0].argmax(dim=2)[0].numpy()
        action = np.where(rng.random(len(sizes)) < epsilon, rng.integers(sizes), action)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        row = step % config.replay
        obs_held[row], next_obs_held[row], actions_held[row] = obs, next_obs, action
        reward_held[row], ended_held[row] = reward, terminated
        obs = env.reset()[0] if terminated or truncated else next_obs

        if step >= config.start and step % config.train_every == 0:
            rows = rng.integers(min(step + 1, config.replay), size=config.batch)
            s, next_s, taken_actions, r, ended = (
                torch.tensor(held[rows]) for held in (obs_held, next_obs_held, actions_held, reward_held, ended_held)
            )
            with torch.no_grad():
                best = net(next_s)[0].argmax(dim=2, keepdim=True)
                old, next_h = target(next_s)
                y = r + config.gamma * (1 - ended) * target.mix(old.gather(2, best)[:, :, 0], next_h)
            heads, h = net(s)
            loss = F.smooth_l1_loss(net.mix(heads.gather(2, taken_actions[:, :, None])[:, :, 0], h), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            updates += 1
            if updates % config.target_every == 0:
                target.load_state_dict(net.state_dict())
    return (steps - config.start) / (time.perf_counter() - began)
