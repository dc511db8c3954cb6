"""What one sees of an agent while it learns, and how it is stopped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gym = pytest.importorskip("gymnasium", reason="needs the rl extra")
pytest.importorskip("dm_control", reason="needs the rl extra")

from rl_suite.agents import Agent, AgentConfig  # noqa: E402
from rl_suite.callbacks import EpisodeStatistics, TensorBoard  # noqa: E402
from rl_suite.control import PointMasses  # noqa: E402
from tests.training.test_metrics import scalars  # noqa: E402

README = Path(__file__).parents[2] / "rl_suite/README.md"


class Countdown(gym.Env):  # type: ignore[misc, name-defined]
    """Episodes of three steps; the reward is the number of the step, whatever is done."""

    observation_space = gym.spaces.Box(0, 3, (1,), np.float32)
    action_space = gym.spaces.MultiDiscrete([2, 2])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.number += 1
        return np.full(1, self.number, np.float32), float(self.number), False, self.number == 3, {}


def agent(**options: Any) -> Agent:
    return Agent(Countdown, AgentConfig(**{"envs": 2, "start": 16, "batch": 8, "width": 8, "explore": 20} | options))


def test_returns_and_lengths_are_of_whole_episodes() -> None:
    episodes = EpisodeStatistics(2)
    episodes.add(np.array([1.0, 10.0]), np.array([False, True]))
    episodes.add(np.array([2.0, 20.0]), np.array([True, False]))
    episodes.add(np.array([4.0, 40.0]), np.array([True, True]))
    assert list(episodes.returns) == [10, 3, 4, 60]
    assert list(episodes.lengths) == [1, 2, 1, 2]


def test_metrics_have_the_names_that_sb3_gives_them() -> None:
    learnt = agent().learn(24)
    assert learnt.metrics.keys() == {
        "time/total_timesteps",
        "train/n_updates",
        "train/loss",
        "rollout/exploration_rate",
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
    }
    assert learnt.metrics["rollout/ep_rew_mean"] == 1 + 2 + 3
    assert learnt.metrics["rollout/ep_len_mean"] == 3
    assert learnt.metrics["time/total_timesteps"] == 24
    assert learnt.metrics["rollout/exploration_rate"] == pytest.approx(0.1)
    assert "train/loss" not in agent().learn(4).metrics  # nothing has been fitted yet


def test_a_callback_ends_learning_by_returning_false() -> None:
    steps: list[int] = []

    def until_ten(agent: Agent) -> bool:
        steps.append(agent.steps)
        return agent.steps < 10

    learner = agent().learn(1000, callback=until_ten)
    assert steps == [2, 4, 6, 8, 10] and learner.steps == 10
    assert learner.learn(4).steps == 14


def test_a_comparison_of_numpy_numbers_ends_learning_too() -> None:
    """NumPy's False is another object than Python's."""
    assert agent().learn(1000, callback=lambda agent: np.float64(agent.steps) < 10).steps == 10


def test_an_episode_that_a_saved_agent_has_begun_counts_whole(tmp_path: Path) -> None:
    config = AgentConfig(envs=2, start=10**6, width=8)
    envs = [PointMasses(2, 3, time_limit=20) for _ in range(2)]
    saved = Agent(envs[0], config).learn(2 * 15)
    saved.save(tmp_path / "agent.pt")
    loaded = Agent.load(tmp_path / "agent.pt", envs[1])
    for learner in (saved, loaded):
        learner.learn(2 * 5)
    assert list(loaded.episodes.lengths) == list(saved.episodes.lengths) == [20, 20]
    assert list(loaded.episodes.returns) == list(saved.episodes.returns)


def test_tensorboard_gets_the_metrics_at_intervals(tmp_path: Path) -> None:
    with TensorBoard(tmp_path, every=10) as tensorboard:
        agent().learn(24, callback=tensorboard)
    written = [(step, value) for step, name, value in scalars(tmp_path) if name == "rollout/ep_rew_mean"]
    assert written == [(12, 6.0), (22, 6.0)]


def test_the_readmes_own_environment_is_learnt_until_its_callback_is_content() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "class Thermostats" in block]
    names: dict[str, Any] = {}
    exec(block, names)
    assert 2000 <= names["agent"].steps < 20_000
    assert names["agent"].metrics["rollout/ep_rew_mean"] >= -5
