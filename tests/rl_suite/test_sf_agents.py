"""SF agents: parity with a loop over tasks, exact answers on small MDPs, resuming to the bit, one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gym = pytest.importorskip("gymnasium", reason="needs gymnasium")

from gymnasium import spaces  # noqa: E402

from rl_suite.sf_dqn import DQNAgent, DQNSettings  # noqa: E402
from rl_suite.sf_replay import Batch, Replay  # noqa: E402
from rl_suite.sf_speed import LoopedUpdate  # noqa: E402
from rl_suite.sf_tabular import TabularAgent  # noqa: E402
from rl_suite.sf_tasks import Q_FRESH, Q_GPI, Q_WARM, SF, SF_WARM, UVFA, GoalFeature, four_room, reacher, scalar  # noqa: E402

METHODS = {"sf": SF, "sf-warm": SF_WARM, "q-gpi": Q_GPI, "q-warm": Q_WARM, "uvfa": UVFA}
SMALL = DQNSettings(hidden=(16, 16), learning_starts=20, target_every=25, capacity=150)


class Corridor(gym.Env):
    """Cells 0 … 4 from the middle, left or right; φ is one-hot over the two ends, where episodes end."""

    def __init__(self, action_space: Any = None) -> None:
        self.observation_space = spaces.Box(0, 1, (5,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.reward_space = spaces.Box(0, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple:
        super().reset(seed=seed)
        self.cell = 2
        return self._observe(), {}

    def step(self, action: int) -> tuple:
        self.cell += 1 if action else -1
        phi = np.array([self.cell == 0, self.cell == 4], np.float32)
        return self._observe(), phi, bool(phi.any()), False, {}

    def _observe(self) -> np.ndarray:
        return np.eye(5, dtype=np.float32)[self.cell]


class Numbered(Corridor):
    """Observes the number of the cell, a Python int."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Discrete(5)

    def _observe(self) -> int:  # type: ignore[override]
        return self.cell


@pytest.mark.parametrize("kind", [Corridor, Numbered])
def test_a_table_knows_a_state_in_any_type(kind: type[Corridor]) -> None:
    agent = TabularAgent(kind(), [[0.0, 1.0]])
    agent.learn(0, 300)
    assert len(agent.states) == 5
    start = agent.env.reset()[0]
    for observation in (start, np.asarray(start, np.float64), np.asarray(start, np.int64).tolist()):
        assert [agent.predict(observation, [0.0, 1.0]) for _ in range(20)] == [1] * 20


def random_batch(n: int, states: int, actions: int, d: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    s, next_s = torch.randn(2, n, states, generator=g)
    a = torch.randint(actions, (n,), generator=g)
    return Batch(s, a, torch.randn(n, d, generator=g), next_s, (torch.rand(n, generator=g) > 0.2).float())


@pytest.mark.parametrize("shared", [True, False])
def test_the_batched_update_of_all_tasks_equals_a_loop_over_them(shared: bool) -> None:
    agent = DQNAgent(Corridor(), np.random.default_rng(0).normal(size=(3, 2)), settings=SMALL)
    agent.begun = 3
    looped = LoopedUpdate(agent.net, agent.w, 2, SMALL.gamma, SMALL.rate, shared)
    for _ in range(5):
        batch = random_batch(32, 5, 2, 2)
        agent.update(batch)
        looped.update(batch)
    for i, net in enumerate(looped.nets):
        assert torch.allclose(agent.net(batch.s, 3)[i], net(batch.s), atol=1e-5)


def test_targets_are_the_papers() -> None:
    agent = DQNAgent(Corridor(), np.random.default_rng(0).normal(size=(3, 2)), settings=SMALL)
    agent.begun = 3
    batch = random_batch(8, 5, 2, 2)
    psi = agent.net(batch.next_s, 3).detach().reshape(3, 8, 2, 2).numpy()
    w, phi, goes_on = agent.w.numpy(), batch.phi.numpy(), batch.goes_on.numpy()
    for i in range(3):
        for b in range(8):
            best = max(range(2), key=lambda a: max(psi[j, b, a] @ w[i] for j in range(3)))
            expected = phi[b] + SMALL.gamma * goes_on[b] * psi[i, b, best]
            assert np.allclose(agent._targets(batch, agent.w)[i, b].numpy(), expected, atol=1e-5)


# Not DQN-GPI: the best of both tasks' Q is the same at either end, which is what it is criticised for.
@pytest.mark.parametrize("name", ["sf", "q-warm", "uvfa"])
def test_deep_agents_learn_a_corridor_of_two_opposite_tasks(name: str) -> None:
    agent = DQNAgent(Corridor(), np.array([[1.0, 0], [0, 1]]), METHODS[name], SMALL, seed=1)
    for task in (0, 1):
        agent.learn(task, 400)
    middle = np.eye(5, dtype=np.float32)[[2, 2]]
    actions = agent.predict(middle, [[1, -1], [0, 1]])
    assert actions[1] == 1
    if METHODS[name].features:
        assert actions[0] == 0  # a task never trained: ψ answers it at once


def test_tabular_psi_is_discounted_feature_counts() -> None:
    agent = TabularAgent(Corridor(), np.array([[1.0, 0], [0, 1]]), seed=0, epsilon=0.5)
    for task in (0, 1):
        agent.learn(task, 1000)
    middle = agent.table[agent.states[np.eye(5, dtype=np.float32)[2].tobytes()]]  # [task, A, d]
    assert np.allclose(middle[0, 0], [0.95, 0])  # left, then left again for task 0
    assert np.allclose(middle[1, 1], [0, 0.95])
    assert agent.predict(np.eye(5, dtype=np.float32)[2], [1.0, -1]) == 0


def test_w_is_learnt_from_rewards() -> None:
    w = np.array([[1.0, -2.0]])
    agent = DQNAgent(Corridor(), w, SF, DQNSettings(hidden=(8,), learn_w=True, epsilon=1.0, w_rate=0.5))
    agent.learn(0, 400)
    assert np.allclose(agent.w.numpy(), w, atol=1e-3)


def equal(x: Any, y: Any) -> bool:
    if isinstance(x, torch.Tensor):
        return torch.equal(x, y)
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(equal(x[key], y[key]) for key in x)
    if isinstance(x, list):
        return len(x) == len(y) and all(map(equal, x, y))
    return bool(x == y)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_deep_agent_equals_an_uninterrupted_one_to_the_bit(name: str, tmp_path: Path) -> None:
    def fresh() -> DQNAgent:
        settings = DQNSettings(**(SMALL.__dict__ | {"learn_w": name == "sf"}))
        return DQNAgent(reacher().make(), reacher().train[:2], METHODS[name], settings, seed=3)

    uninterrupted, first = fresh(), fresh()
    for agent in (uninterrupted, first):
        agent.learn(0, 130)
    first.save(tmp_path / "first.pt")
    resumed = fresh()
    resumed.load(tmp_path / "first.pt")
    outcomes = [[agent.learn(0, 60), agent.learn(1, 130)] for agent in (uninterrupted, resumed)]
    assert outcomes[0] == outcomes[1]
    uninterrupted.save(tmp_path / "whole.pt")
    resumed.save(tmp_path / "resumed.pt")
    states = [torch.load(tmp_path / f"{which}.pt", weights_only=True) for which in ("whole", "resumed")]
    assert {"net", "target", "optimiser", "replay", "rng"} <= states[0].keys()
    assert equal(*states)


def test_a_resumed_tabular_agent_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    family = four_room(np.random.default_rng(0), 3)
    uninterrupted, first, resumed = (TabularAgent(family.make(), family.train, seed=4) for _ in range(3))
    for agent in (uninterrupted, first):
        agent.learn(0, 1500)
    first.save(tmp_path / "first.pt")
    resumed.load(tmp_path / "first.pt")
    assert [uninterrupted.learn(t, 1500) for t in (0, 1)] == [resumed.learn(t, 1500) for t in (0, 1)]
    assert uninterrupted.states == resumed.states
    assert np.array_equal(uninterrupted.table[: len(uninterrupted.states)], resumed.table[: len(uninterrupted.states)])
    assert uninterrupted.rng.bit_generator.state == resumed.rng.bit_generator.state


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_our_environments_pass_gymnasiums_checker() -> None:
    from gymnasium.utils.env_checker import check_env

    for family in (four_room(np.random.default_rng(0), 1), reacher()):
        check_env(scalar(family.make(), family.train[0]), skip_render_check=True)


def test_the_goal_is_a_feature_of_its_own() -> None:
    pytest.importorskip("mo_gymnasium", reason="needs mo-gymnasium")
    from rl_suite.sf_tasks import make

    env = GoalFeature(make("four-room-v0"))
    env.reset(seed=0)
    env.unwrapped.state = ((1, 12), env.unwrapped.state[1])  # below the goal
    _, phi, terminated, _, _ = env.step(1)
    assert terminated and phi.tolist() == [0, 0, 0, 1]


def test_bad_input_says_what_to_change(tmp_path: Path) -> None:
    weights = np.ones((1, 2))
    with pytest.raises(ValueError, match="Box action space: these agents need Discrete"):
        DQNAgent(Corridor(spaces.Box(-1, 1, (1,))), weights)
    with pytest.raises(ValueError, match="flatten it to Discrete"):
        TabularAgent(Corridor(spaces.MultiDiscrete([2, 2])), weights)
    with pytest.raises(ValueError, match="has no reward_space: the reward must be the feature vector"):
        DQNAgent(gym.make("CartPole-v1"), weights)
    with pytest.raises(ValueError, match=r"w of shape \(1, 3\): \[tasks, 2\] is needed"):
        DQNAgent(Corridor(), np.ones((1, 3)))
    with pytest.raises(ValueError, match="w must be finite"):
        TabularAgent(Corridor(), weights * np.nan)
    with pytest.raises(ValueError, match="tasks are learnt in order, and 0 of them have begun"):
        DQNAgent(Corridor(), np.ones((3, 2))).learn(1, 10)
    with pytest.raises(ValueError, match="the replay is empty"):
        Replay(10, 5, 2).sample(4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="learn_w needs features"):
        DQNAgent(Corridor(), weights, Q_WARM, DQNSettings(learn_w=True))
    with pytest.raises(ValueError, match="a new DQNAgent a task"):
        DQNAgent(Corridor(), weights, Q_FRESH)
    with pytest.raises(ValueError, match="UVFA needs the networks"):
        TabularAgent(Corridor(), weights, UVFA)
    DQNAgent(Corridor(), weights, settings=SMALL).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds an agent made with"):
        DQNAgent(Corridor(), weights, Q_GPI, SMALL).load(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a replay of 100 never holds the 200 transitions"):
        DQNSettings(capacity=100)
    for refused in (DQNAgent, TabularAgent):
        with pytest.raises(ValueError, match=r"Discrete\(2, start=1\): actions must start at 0"):
            refused(Corridor(spaces.Discrete(2, start=1)), weights)


def test_predictions_need_a_task_that_has_begun_and_one_w_an_observation() -> None:
    observations, weights = np.eye(5, dtype=np.float32)[:3], np.eye(2)
    deep, tabular = DQNAgent(Corridor(), weights, settings=SMALL), TabularAgent(Corridor(), weights)
    with pytest.raises(ValueError, match="no task has begun: call learn first"):
        deep.predict(observations, [[1, 0]] * 3)
    with pytest.raises(ValueError, match="no task has begun: call learn first"):
        tabular.predict(observations[0], [1, 0])
    deep.learn(0, 5)
    with pytest.raises(ValueError, match="3 observations, 1 rows of w: give one row an observation"):
        deep.predict(observations, [[1, 0]])


def test_a_table_of_other_tasks_is_not_loaded(tmp_path: Path) -> None:
    weights, path = np.array([[1.0, 0]]), tmp_path / "table.pt"
    TabularAgent(Corridor(), weights, Q_WARM).save(path)
    TabularAgent(Corridor(), weights, Q_WARM).load(path)
    others: list[dict[str, Any]] = [
        {"method": Q_FRESH},
        {"weights": -weights},
        *({rate: 0.01} for rate in ("alpha", "gamma", "epsilon")),
    ]
    for other in others:
        with pytest.raises(ValueError, match="holds an agent made with"):
            TabularAgent(Corridor(), **{"weights": weights, "method": Q_WARM} | other).load(path)
