"""Online agents and their environments: parity with dm_control, n-step returns, resumption to the bit, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

gym = pytest.importorskip("gymnasium", reason="needs the rl extra")
pytest.importorskip("dm_control", reason="needs the rl extra")

from gymnasium import spaces  # noqa: E402
from gymnasium.utils.env_checker import check_env  # noqa: E402
from gymnasium.vector import SyncVectorEnv  # noqa: E402

from rl_suite.agents import Agent, AgentConfig, QNet  # noqa: E402
from rl_suite.control import Bins, DMControl, PointMasses, make_vector  # noqa: E402
from rl_suite.replay import Replay  # noqa: E402
from rl_suite.sepsis_sim import SepsisSim  # noqa: E402


class Switches(gym.Env):  # type: ignore[misc, name-defined]
    """Three switches of 2, 3 and 4 positions; the reward counts those set as the observation asks. Ends after 5."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.MultiDiscrete([2, 3, 4]), spaces.MultiDiscrete([2, 3, 4])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._remaining_steps = 5
        self._wish = self.np_random.integers([2, 3, 4])
        return self._wish, {}

    def step(self, action: np.ndarray) -> Any:
        reward = float((action == self._wish).mean())
        self._remaining_steps -= 1
        self._wish = self.np_random.integers([2, 3, 4])
        return self._wish, reward, self._remaining_steps == 0, False, {}


SMALL: dict[str, Any] = {"width": 32, "batch": 32, "start": 64, "explore": 400, "envs": 4, "replay": 500, "seed": 3}


@pytest.mark.filterwarnings("ignore:.*Box observation space.*:UserWarning", "ignore:.*render.*:UserWarning")
@pytest.mark.parametrize(
    "make", [SepsisSim, lambda: DMControl("point_mass", "easy"), lambda: Bins(DMControl("cartpole", "balance"), 5)]
)
def test_environments_pass_gymnasiums_checker(make: Callable[[], Any]) -> None:
    check_env(make(), skip_render_check=True)


@pytest.mark.parametrize(("start", "rewarded"), [((0.01, -0.02), True), ((0.01, 0.01), True), ((-0.1, 0.2), False)])
def test_point_masses_move_as_dm_controls_to_the_bit_and_have_its_rewards(
    start: tuple[float, float], rewarded: bool
) -> None:
    batched, single = PointMasses(2, 9), DMControl("point_mass", "easy")
    batched.reset(seed=5)
    batched._data[1].qpos[:] = start
    batched._mujoco.mj_forward(batched._model, batched._data[1])
    single.reset(seed=0)
    with single._env.physics.reset_context():
        single._env.physics.data.qpos[:] = start
    rng = np.random.default_rng(0)
    levels, dm_control_rewards = np.linspace(-1, 1, 9), []
    for _ in range(150):
        actions = rng.integers(9, size=(2, 2))
        observations, rewards, *_ = batched.step(actions)
        expected, reward, *_ = single.step(levels[actions[1]])
        assert np.array_equal(observations[1], expected)
        assert rewards[1] == pytest.approx(reward, abs=1e-12)
        dm_control_rewards.append(reward)
    assert (max(dm_control_rewards) > 0.5) == rewarded  # zeros would agree with anything


def test_a_dense_point_mass_rewards_every_approach() -> None:
    near, far = np.array([[0.02, 0.02]]), np.array([[0.2, 0.2]])
    rewards = {}
    for task in ("point_mass-easy", "point_mass-dense"):
        envs = make_vector(task, 1, 3)
        for name, position in (("near", near), ("far", far)):
            envs.reset(seed=0)
            assert isinstance(envs, PointMasses)
            envs._data[0].qpos[:] = position
            envs._mujoco.mj_forward(envs._model, envs._data[0])
            rewards[task, name] = float(envs._rewards(np.zeros((1, 2)))[0])
    assert rewards["point_mass-dense", "near"] > rewards["point_mass-dense", "far"] > 0.1
    assert rewards["point_mass-easy", "far"] < 1e-6


def test_the_end_of_an_episode_is_reported_and_a_new_one_begins() -> None:
    envs = PointMasses(2, 3, time_limit=4)
    envs.reset(seed=0)
    for _ in range(4):
        observations, _, terminated, truncated, info = envs.step(np.full((2, 2), 2))
    assert truncated.all() and not terminated.any()
    assert info["_final_obs"].all()
    assert np.all(observations[:, 2:] == 0)  # at rest again
    assert np.all(np.stack(info["final_obs"])[:, 2:] != 0)


def test_bins_reach_each_dimensions_own_limits() -> None:
    class Uneven(gym.Env):  # type: ignore[misc, name-defined]
        observation_space = spaces.Box(0, 1, (1,))
        action_space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 4.0]), dtype=np.float64)

    env = Bins(Uneven(), 5)
    assert env.action(np.array([0, 0])).tolist() == [-1.0, 0.0]
    assert env.action(np.array([4, 1])).tolist() == [1.0, 1.0]


def test_n_step_returns_stop_where_an_episode_does() -> None:
    replay = Replay(8, 1, 1, 1)
    ends = {2: (True, False), 5: (False, True)}  # step 2 terminates, step 5 is cut off
    for t in range(8):
        terminated, truncated = ends.get(t, (False, False))
        block_actions = torch.zeros(1, 1, dtype=torch.long)
        obs, next_obs = torch.full((1, 1), float(t)), torch.full((1, 1), t + 1.0)
        ends_here = np.array([terminated]), np.array([truncated])
        replay.add(obs, block_actions, torch.ones(1, 1), np.array([1.0 * t]), next_obs, *ends_here)
    sample = replay.sample(500, 3, 0.5, torch.Generator().manual_seed(0))
    expected = {
        0: (0 + 0.5 + 0.5, 0.0, 3.0),  # half of 1 and a quarter of 2, then over
        1: (1 + 1.0, 0.0, 3.0),
        2: (2.0, 0.0, 3.0),
        3: (3 + 2 + 1.25, 0.125, 6.0),
        4: (4 + 2.5, 0.25, 6.0),  # cut off: bootstrapped from the final observation, two steps on
        5: (5.0, 0.5, 6.0),
    }
    starts, last_obs = sample.obs[:, 0], sample.last_obs[:, 0]
    assert set(starts.tolist()) == set(expected)
    for start, r, discount, next_obs in zip(starts, sample.returns, sample.discounts, last_obs, strict=True):
        assert (r.item(), discount.item(), next_obs.item()) == pytest.approx(expected[int(start)])


@pytest.mark.parametrize("mixer", ["mean", "weighted", "mlp"])
def test_each_heads_greedy_action_is_the_mixtures(mixer: Any) -> None:
    torch.manual_seed(0)
    net = QNet(3, (3, 4), AgentConfig(mixer=mixer, width=16))
    heads, h = net(torch.randn(20, 3))
    joint = torch.cartesian_prod(torch.arange(3), torch.arange(4))  # [12, 2]
    values = torch.stack(
        [net.mix(torch.stack([heads[:, 0, a], heads[:, 1, b]], dim=1), h) for a, b in joint.tolist()], dim=1
    )
    assert torch.equal(joint[values.argmax(dim=1)], heads.argmax(dim=2))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"blocks": ((0, 1, 2),)}, marks=pytest.mark.slow(12)),
        {},
        pytest.param({"projected": 1.0, "mixer": "weighted", "blocks": ((0, 2), (1,))}, marks=pytest.mark.slow(8)),
        pytest.param({"projected": 1.0, "mixer": "mlp", "model": True}, marks=pytest.mark.slow(20)),
    ],
)
def test_agents_learn_what_the_switches_want(options: dict[str, Any]) -> None:
    agent = Agent(Switches, AgentConfig(**SMALL | options | {"gamma": 0.0, "n_step": 1, "train_every": 2, "lr": 3e-3}))
    agent.learn(3000)
    wishes = np.stack(np.unravel_index(np.arange(24), (2, 3, 4)), axis=1)
    assert np.mean(agent.predict(wishes) == wishes) > 0.9
    assert np.array_equal(agent.predict(wishes[5]), agent.predict(wishes)[5])


def test_each_block_explores_for_the_share_of_time_that_it_is_told_to() -> None:
    config = AgentConfig(blocks=((0,), (1,)), epsilon=0.3, explore=1, hold=9, envs=50, start=10**9, seed=1)
    agent = Agent(PointMasses(50, 101), config)
    agent.steps = 1
    obs = agent._flat(agent.envs.reset(seed=0)[0])
    greedy = agent.net(obs)[0].argmax(dim=2)
    draws = [agent._explore(obs) for _ in range(400)]
    explored = torch.stack([actions != greedy for actions, _ in draws]).float()
    for actions, propensity in draws:
        assert torch.allclose(propensity, torch.where(actions == greedy, 0.7 + 0.3 / 101, 0.3 / 101))
    assert explored.mean(dim=(0, 1)).tolist() == pytest.approx([0.3, 0.3], abs=0.02)
    joint_exploration = (explored[:, :, 0] * explored[:, :, 1]).mean()
    assert joint_exploration.item() == pytest.approx(0.09, abs=0.02)  # the blocks explore independently


def test_an_action_held_since_a_larger_epsilon_keeps_its_propensity() -> None:
    """ε falls to 0 within the holds: every action taken had a probability above 0, and no weight becomes NaN."""
    falling = {"epsilon": 0.0, "hold": 100, "explore": 160, "projected": 1.0, "replay": 8000, "envs": 16}
    agent = Agent(Switches, AgentConfig(**SMALL | falling)).learn(1600)
    propensity = agent.replay.data["propensity"][: agent.replay.added]
    assert agent.epsilon == 0 and propensity.min() > 0
    assert (propensity[15:] < 0.5).any(), "no action was held on"
    assert all(parameter.isfinite().all() for parameter in agent.net.parameters())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def test_a_resumed_agent_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    config = AgentConfig(**SMALL | {"projected": 1.0, "mixer": "mlp", "model": True, "hold": 5})
    uninterrupted = Agent(PointMasses(4, 5, time_limit=50), config).learn(400).learn(400)
    Agent(PointMasses(4, 5, time_limit=50), config).learn(400).save(tmp_path / "half.pt")
    resumed = Agent.load(tmp_path / "half.pt", PointMasses(4, 5, time_limit=50)).learn(400)
    uninterrupted.save(tmp_path / "whole.pt")
    resumed.save(tmp_path / "resumed.pt")
    a, b = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "resumed.pt"))
    assert a["updates"] > 50
    assert {"net", "target", "optimiser", "world", "replay", "generator", "envs", "obs"} <= a.keys()
    assert _equal(a, b)


class Steps(gym.Env):  # type: ignore[misc, name-defined]
    """Observes ``offset`` and the number of its step; does not end, and cannot save its state."""

    observation_space, action_space = spaces.Box(0, np.inf, (1,)), spaces.MultiDiscrete([2, 2])

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._step = 0
        return np.array([self.offset], np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self._step += 1
        return np.array([self.offset + self._step], np.float32), 1.0, False, False, {}


def test_returns_do_not_go_on_from_the_saved_steps_into_new_episodes(tmp_path: Path) -> None:
    config = AgentConfig(**SMALL | {"envs": 1, "start": 10**6})
    Agent(lambda: Steps(0), config).learn(7).save(tmp_path / "agent.pt")
    resumed = Agent.load(tmp_path / "agent.pt", lambda: Steps(100)).learn(7)
    sample = resumed.replay.sample(500, 3, 0.5, torch.Generator().manual_seed(0))
    starts, last_obs = sample.obs[:, 0], sample.last_obs[:, 0]
    assert {5.0, 6.0, 100.0} <= set(starts.tolist())
    assert (last_obs[starts < 100] <= 7).all(), "a return ends in another episode than it began in"
    newest_saved = starts == 6
    assert (last_obs[newest_saved] == 7).all() and (sample.discounts[newest_saved] == 0.5).all()  # bootstrapped
    Agent(lambda: Steps(0), config).save(tmp_path / "new.pt")
    assert Agent.load(tmp_path / "new.pt", lambda: Steps(0)).learn(3).replay.data["cut"].sum() == 0


class Starts(Steps):
    """Records where its episodes start, which the seed decides; an episode has five steps."""

    starts: ClassVar[list[float]] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.starts.append(self.np_random.uniform())
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, self._step == 5, info


def test_an_agent_that_goes_on_does_not_begin_with_its_first_episodes_again(tmp_path: Path) -> None:
    Starts.starts.clear()
    config = AgentConfig(**SMALL | {"envs": 2, "start": 10**6})
    agent = Agent(lambda: Starts(0), config).learn(40)
    for _ in range(2):
        agent.save(tmp_path / "agent.pt")
        agent = Agent.load(tmp_path / "agent.pt", lambda: Starts(0)).learn(40)
    assert len(Starts.starts) >= 24
    assert len(set(Starts.starts)) == len(Starts.starts)


def _other_actions(sizes: list[int]) -> Callable[[], Any]:
    def make() -> Any:
        env = Steps(0)
        env.action_space = spaces.MultiDiscrete(sizes)
        return env

    return make


@pytest.mark.parametrize(
    ("learnt_on", "loaded_for", "blocks", "says"),
    [
        ([2, 8], [4, 4], ((0, 1),), r"factors have sizes \[2, 8\], not \[4, 4\]"),
        ([2, 3], [3, 2], None, r"factors have sizes \[2, 3\], not \[3, 2\]"),
        ([3, 3], [2, 3], None, r"factors have sizes \[3, 3\], not \[2, 3\]"),
        ([2, 2], [2, 2, 2], ((0,), (1,)), r"factors have sizes \[2, 2\], not \[2, 2, 2\]"),
    ],
)
def test_an_agent_of_other_actions_is_not_loaded(
    tmp_path: Path, learnt_on: list[int], loaded_for: list[int], blocks: Any, says: str
) -> None:
    Agent(_other_actions(learnt_on), AgentConfig(**SMALL | {"blocks": blocks})).save(tmp_path / "agent.pt")
    with pytest.raises(ValueError, match=says):
        Agent.load(tmp_path / "agent.pt", _other_actions(loaded_for))


def test_an_agent_is_loaded_for_as_many_environments_whether_or_not_they_have_a_state(tmp_path: Path) -> None:
    Agent(PointMasses(4, 5), AgentConfig(**SMALL)).learn(40).save(tmp_path / "agent.pt")
    with pytest.raises(ValueError, match="environments whose number is 4, not 1"):
        Agent.load(tmp_path / "agent.pt", PointMasses(1, 5))
    resumed = Agent.load(tmp_path / "agent.pt", lambda: Bins(DMControl("point_mass", "easy"), 5))
    assert resumed.learn(8).steps == 48


@pytest.mark.parametrize(
    "bad",
    [
        *({field: 0} for field in ("n_step", "width", "batch", "train_every", "target_every", "replay", "explore")),
        *({field: 0} for field in ("hold", "envs", "lr")),
        *({field: value} for field in ("epsilon", "gamma") for value in (-0.1, 1.1, np.nan)),
        {"projected": -1.0},
        {"projected": np.inf},
        {"start": -1},
        {"mixer": "avg"},
        {"batch": 1, "model": True, "projected": 1.0},
    ],
)
def test_options_that_nothing_is_learnt_with_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a batch of 2 or more" if "model" in bad else next(iter(bad))):
        AgentConfig(**bad)


@pytest.mark.parametrize("space", [spaces.Dict({"a": spaces.Box(-1, 1, (2,))}), spaces.Tuple([spaces.Discrete(2)])])
def test_observations_of_several_parts_are_refused(space: Any) -> None:
    class Parts(Switches):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = space

    with pytest.raises(ValueError, match=r"gymnasium\.wrappers\.FlattenObservation"):
        Agent(Parts, AgentConfig(**SMALL))


def test_bad_environments_and_blocks_say_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Box action space: these agents need Discrete or MultiDiscrete"):
        Agent(lambda: DMControl("point_mass", "easy"), AgentConfig(envs=2))
    with pytest.raises(ValueError, match="no partition"):
        Agent(Switches, AgentConfig(blocks=((0,), (1,)), envs=2))
    with pytest.raises(ValueError, match=r"Discrete\(3, start=1\): actions must start at 0"):
        Agent(lambda: gym.wrappers.TransformAction(Switches(), None, spaces.Discrete(3, start=1)), AgentConfig(envs=2))
    with pytest.raises(ValueError, match=r"AutoresetMode\.SAME_STEP"):
        Agent(SyncVectorEnv([Switches] * 2), AgentConfig())
    with pytest.raises(ValueError, match="a model serves the projected losses alone"):
        AgentConfig(model=True)
    with pytest.raises(ValueError, match="only a Box"):
        Bins(Switches(), 3)
    with pytest.raises(ValueError, match="dm_control has no point_mass-simple"):
        make_vector("point_mass-simple", 1, 3).reset()
    Agent(Switches, AgentConfig(**SMALL)).save(tmp_path / "agent.pt")
    with pytest.raises(ValueError, match=r"factors have sizes \[2, 3, 4\], not \[5, 5\]"):
        Agent.load(tmp_path / "agent.pt", PointMasses(4, 5))
    saved = torch.load(tmp_path / "agent.pt", weights_only=True)
    del saved["replay"]["propensity"]
    torch.save(saved, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="no propensity: an earlier version saved it; train again"):
        Agent.load(tmp_path / "old.pt", Switches)
    del saved["spaces"]
    torch.save(saved, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"an earlier version saved .*: train again"):
        Agent.load(tmp_path / "old.pt", Switches)
