"""Projected losses on a replay that several policies filled: no block gets credit for what another one does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

gym = pytest.importorskip("gymnasium", reason="needs the rl extra")

from gymnasium import spaces  # noqa: E402

from rl_suite.agents import Agent, AgentConfig  # noqa: E402
from rl_suite.backdoor import backdoor_weights  # noqa: E402

EPSILON = 0.1


class SecondFactorPays(gym.Env):  # type: ignore[misc, name-defined]
    """A bandit with two binary factors. The reward is a_2: setting a_1 has no effect."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Discrete(1), spaces.MultiDiscrete([2, 2])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: np.ndarray) -> Any:
        return 0, float(action[1]), True, False, {}


def fill_by_two_policies(agent: Agent, rows: int) -> None:
    """The replay of an agent whose greedy actions were (0, 0) in the first half and (1, 1) in the second."""
    rng, obs, envs = np.random.default_rng(0), torch.ones(agent.envs.num_envs, 1), agent.envs.num_envs
    for greedy in (0, 1):
        for _ in range(rows // 2):
            explores = rng.random((envs, 2)) < EPSILON
            actions = torch.from_numpy(np.where(explores, rng.integers(2, size=(envs, 2)), greedy))
            propensity = EPSILON / 2 + (1 - EPSILON) * (actions == greedy).float()
            ended = np.ones(envs, bool)
            agent.replay.add(obs, actions, propensity, actions[:, 1].numpy(), obs, ended, ~ended)


def learned_effects(agent: Agent, updates: int) -> np.ndarray:
    """Of a_1 and of a_2 on the heads' values, the mean over the second half of the updates."""
    effects = []
    for _ in range(updates):
        agent._update()
        with torch.no_grad():
            heads = agent.net(torch.ones(1, 1))[0][0]
        effects.append((heads[:, 1] - heads[:, 0]).numpy())
    return np.mean(effects[updates // 2 :], axis=0)


@pytest.mark.parametrize(
    ("mixer", "tolerance"),
    [
        ("mean", 0.2),
        pytest.param("weighted", 0.1, marks=pytest.mark.slow(8)),
        pytest.param("mlp", 0.1, marks=pytest.mark.slow(10)),
    ],
)
def test_a_factor_without_effect_gets_no_credit_from_a_replay_of_two_policies(mixer: Any, tolerance: float) -> None:
    """Without weights the effect of a_1 is about 0.8.

    A mean of two heads halves the effect of a_2, so that its own loss asks head 1 for some of the rest.
    """
    config = AgentConfig(projected=1.0, mixer=mixer, width=16, lr=2e-3, envs=8, replay=8000, n_step=1)
    agent = Agent(SecondFactorPays, config)
    fill_by_two_policies(agent, 1000)
    of_first, of_second = learned_effects(agent, 1000)
    assert of_first == pytest.approx(0, abs=tolerance)
    assert of_second == pytest.approx(1, abs=0.25)


def test_a_heads_weight_has_the_ratios_of_the_other_blocks_alone() -> None:
    reference = torch.tensor([[0.5, 0.2, 0.9]]).log()
    propensity = torch.tensor([[0.25, 0.8, 0.3]]).log()
    weights = backdoor_weights(reference, propensity)
    assert weights[0].tolist() == pytest.approx([0.25 * 3, 2 * 3, 2 * 0.25])
    assert backdoor_weights(reference, propensity - 9).max() == 10
    never = torch.tensor([[0.0, 0.8, 0.3]]).log()  # a propensity of 0: its own block's weight does not depend on it
    assert backdoor_weights(reference, never)[0].tolist() == pytest.approx([0.25 * 3, 10, 10])
