"""Offline learners, estimators and the sepsis simulator, against exact values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

pytest.importorskip("gymnasium", reason="needs the rl extra")

from gymnasium import spaces

from rl_suite.adrl_sepsis import JOB, _summary, select
from rl_suite.bcq import OfflineAgent, OfflineConfig
from rl_suite.mdp import MDP, expected_return, greedy, optimal_q, uniform
from rl_suite.offline import Episodes, collect, pareto, read_minari, write_minari
from rl_suite.ope import fqe, soften, wis
from rl_suite.sepsis_sim import STATE, SepsisSim, arrival_rewards, sepsis_mdp, variables

ARRIVAL = np.array([0.0, 0.0, 0.0, 1.0, -1.0])


def clinic(rng: np.random.Generator) -> MDP:
    """Three states and two ends, actions (2, 3), each factor's effect added: rewards are for arriving alone."""
    P = np.zeros((5, 2, 3, 5))
    first, second = rng.dirichlet(np.full(5, 0.5), (3, 2)), rng.dirichlet(np.full(5, 0.5), (3, 3))
    P[:3] = (first[:, :, None] + second[:, None]) / 2
    P = P.reshape(5, 6, 5)
    return MDP(P, P @ ARRIVAL, np.array([1, 1, 1, 0, 0]) / 3, (2, 3), 0.9)


def logged(mdp: MDP, episodes: int, rng: np.random.Generator) -> tuple[Episodes, np.ndarray]:
    behaviour = 0.6 * uniform(np.ones(mdp.R.shape, bool)) + 0.4 * greedy(-optimal_q(mdp))
    return collect(mdp, ARRIVAL, behaviour, episodes, rng, 200), behaviour


def test_wis_of_two_known_episodes() -> None:
    states, actions = np.array([0, 0, 0]), np.array([0, 1, 1])
    ends = np.array([False, True, True])
    data = Episodes(states, actions, np.array([0.0, 1.0, 0.0]), states, ends, ends, np.full(3, 0.5), (2,))
    policy = np.array([[0.2, 0.8]])
    first, second = 0.4 * 1.6, 1.6  # Π π/π_b of (0, 1) and of (1)
    value, ess = wis(data, policy, 0.9)
    assert value == pytest.approx(first * 0.9 / (first + second))
    assert ess == pytest.approx((first + second) ** 2 / (first**2 + second**2))
    with pytest.raises(ValueError, match="the behaviour policy has no support for this policy"):
        wis(data, np.array([[1.0, 0.0]]), 0.9)


def test_estimates_of_a_known_mdp_meet_the_true_value() -> None:
    rng = np.random.default_rng(0)
    mdp = clinic(rng)
    data, behaviour = logged(mdp, 30_000, rng)
    policy = soften(greedy(optimal_q(mdp)), behaviour, 0.3)
    true = expected_return(mdp, policy)
    assert wis(data, policy, mdp.gamma)[0] == pytest.approx(true, abs=0.05)
    assert fqe(data, policy, mdp.start, mdp.gamma) == pytest.approx(true, abs=0.03)
    value, ess = wis(data, behaviour, mdp.gamma)
    assert value == pytest.approx(data.returns(mdp.gamma).mean())
    assert ess == pytest.approx(30_000)


def test_fqe_takes_a_states_mean_for_an_action_that_was_never_logged_there() -> None:
    """Episodes of one step. The third state was never logged: it gets the mean over all."""
    states, actions, rewards = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), np.array([1.0, 3.0, 5.0, 7.0])
    ends = np.ones(4, bool)
    data = Episodes(states, actions, rewards, states, ends, ends, np.full(4, 0.5), (3,))
    values = [fqe(data, np.tile(np.eye(3)[action], (3, 1)), np.eye(3)[s], 0.9) for s in range(3) for action in range(3)]
    assert values == [2, 5, 3, 7, 7, 7, 4, 4, 4]


@pytest.mark.parametrize(
    "kind",
    [pytest.param("bcq", marks=pytest.mark.slow(12)), pytest.param("bcqf", marks=pytest.mark.slow(11)), "ad-bcq"],
)
def test_offline_learners_beat_the_behaviour_they_learnt_from(kind: Any) -> None:
    rng = np.random.default_rng(1)
    mdp = clinic(rng)
    data, behaviour = logged(mdp, 3000, rng)
    config = OfflineConfig(kind=kind, thresholds=(0.0, 0.9999), gamma=0.9, width=32, polyak=0.02, updates=1500)
    actions = OfflineAgent(spaces.MultiDiscrete([2, 3]), np.arange(5)[:, None], config).learn(data).greedy()
    free, imitation = (expected_return(mdp, np.eye(6)[a]) for a in actions)
    best = expected_return(mdp, greedy(optimal_q(mdp)))
    assert free > 0.9 * best + 0.1 * expected_return(mdp, behaviour)
    if kind == "bcq":  # only the likeliest action is left, which here is the worst
        assert np.array_equal(actions[1, :3], greedy(-optimal_q(mdp)).argmax(axis=1)[:3])
        assert imitation < free


def test_a_factor_without_effect_gets_no_credit_from_a_log_of_two_policies() -> None:
    """One step, two binary factors; the reward is the second. One policy prefers (0, 0), the other (1, 1)."""
    rng, rows = np.random.default_rng(5), 4000
    preferred = np.repeat([0, 1], rows // 2)[:, None]
    factors = np.where(rng.random((rows, 2)) < 0.2, 1 - preferred, preferred)
    propensity = np.where(factors == preferred, 0.8, 0.2).prod(axis=1)
    states, ends = np.zeros(rows, int), np.ones(rows, bool)
    rewards = factors[:, 1].astype(float)
    data = Episodes(states, factors @ [2, 1], rewards, states, ends, ends, propensity, (2, 2))
    config = OfflineConfig(thresholds=(0.0,), width=8, batch=1024, lr=0.02)
    agent = OfflineAgent(spaces.MultiDiscrete([2, 2]), np.zeros((1, 1), int), config).learn(data, 120)
    heads, _ = agent._heads(agent.q, torch.tensor([0]))
    first, second = (float(head[0, 0].detach().diff()) for head in heads)
    assert first == pytest.approx(0, abs=0.15) and second == pytest.approx(1, abs=0.15)


def test_a_resumed_offline_agent_equals_an_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    data, _ = logged(clinic(rng), 50, rng)
    config = OfflineConfig(thresholds=(0.0, 0.3), width=16, batch=32)

    def agent() -> OfflineAgent:
        return OfflineAgent(spaces.MultiDiscrete([2, 3]), np.arange(5)[:, None], config)

    uninterrupted = agent().learn(data, 40)
    agent().learn(data, 20).save(tmp_path / "half.pt")
    resumed = OfflineAgent.load(tmp_path / "half.pt").learn(data, 20)
    for name in ("q", "old", "pi"):
        ours, theirs = (getattr(each, name).state_dict() for each in (uninterrupted, resumed))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(uninterrupted.weights, resumed.weights)
    assert torch.equal(uninterrupted.generator.get_state(), resumed.generator.get_state())
    moments = [each.optimiser.state_dict()["state"] for each in (uninterrupted, resumed)]
    assert all(torch.equal(moments[0][i][key], moments[1][i][key]) for i in moments[0] for key in moments[0][i])
    assert np.array_equal(resumed.predict(1), np.unravel_index(uninterrupted.greedy()[0, 1], (2, 3)))


def test_a_minari_dataset_reads_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari", reason="needs the rl extra")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(3)
    data, _ = logged(clinic(rng), 20, rng)
    reloaded = read_minari(write_minari(data, "test/clinic-v0", 5))
    for name in ("states", "actions", "rewards", "next_states", "ended", "last", "propensity"):
        assert np.array_equal(getattr(reloaded, name), getattr(data, name)), name
    assert reloaded.sizes == data.sizes


def minari_log(propensities: list[float]) -> Any:
    """A dataset of one episode with actions 1, 0, 1, as Minari gives it."""
    episode = SimpleNamespace(
        observations=np.arange(4),
        actions=np.array([[1], [0], [1]]),
        rewards=np.zeros(3),
        terminations=np.array([False, False, True]),
        infos={"propensity": np.array(propensities)},
    )
    return SimpleNamespace(
        action_space=spaces.MultiDiscrete([2]),
        observation_space=spaces.Discrete(4),
        iterate_episodes=lambda: iter([episode]),
    )


def test_propensities_are_those_of_the_logged_actions() -> None:
    """Minari's DataCollector begins an episode's infos with those of its reset."""
    for logged in ([0.8, 0.2, 0.8], [1.0, 0.8, 0.2, 0.8], [np.nan, 0.8, 0.2, 0.8]):
        assert read_minari(minari_log(logged)).propensity.tolist() == [0.8, 0.2, 0.8]
    with pytest.raises(ValueError, match="an earlier write_minari wrote it: write the dataset again"):
        read_minari(minari_log([0.8, 0.2, 0.8, 1.0]))
    with pytest.raises(ValueError, match="5 propensities of 3 actions"):
        read_minari(minari_log([0.8] * 5))
    with pytest.raises(ValueError, match=r"transition 1 has propensity 1\.2: give probabilities, at most 1"):
        read_minari(minari_log([0.8, 1.2, 0.8]))


@pytest.mark.parametrize(
    "bad", [{"kind": "AD-BCQ"}, {"kind": "adbcq"}, {"kind": "BCQ"}, {"mixer": "mlp"}, {"batch": 0}]
)
def test_a_learner_that_does_not_exist_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        OfflineConfig(**bad)


def test_one_dataset_decides_nothing() -> None:
    estimates = {"threshold": 0.1, "validation_wis": 0.5, "validation_ess": 99.0, "test_ess": 99.0, "test_fqe": 0.5}
    rows = [estimates | {"learner": name, "true": true, "test_wis": true} for name, true in (("BC", 0.5), ("BCQ", 0.6))]
    assert _summary([rows], 50)["verdicts"] == ["BC less BCQ: -0.1000, one run of each: no interval"]


def test_ventilation_moves_oxygen_alone() -> None:
    mdp, v = sepsis_mdp(), variables()
    vitals = {name: v[:, i] for i, name in enumerate(("diabetic", "hr", "bp", "o2", "glucose"))}
    s = int(np.ravel_multi_index((0, 2, 1, 0, 2, 0, 0, 0), STATE))
    off, on = mdp.P[s, 0], mdp.P[s, 2]  # actions are (antibiotics, ventilation, vasopressors)
    for name, levels in vitals.items():
        laws = [np.bincount(levels, each) for each in (off, on)]
        assert np.allclose(*laws) == (name != "o2"), name
    assert np.bincount(vitals["o2"], on)[1] == pytest.approx(0.7)
    diabetic = int(np.ravel_multi_index((1, 1, 0, 1, 2, 0, 0, 0), STATE))
    assert np.bincount(vitals["bp"], mdp.P[diabetic, 1]) == pytest.approx([0.1, 0.5, 0.4])
    assert np.bincount(vitals["glucose"], mdp.P[diabetic, 1]) == pytest.approx([0, 0, 0.5, 0.5, 0])


def test_the_simulator_steps_as_its_mdp_says() -> None:
    env, mdp, rewards = SepsisSim(), sepsis_mdp(), arrival_rewards()
    total = []
    for episode in range(300):
        obs, _ = env.reset(seed=episode)
        discount, value, ended = 1.0, 0.0, False
        rng = np.random.default_rng(episode)
        while not ended:
            obs, reward, ended, _, _ = env.step(rng.integers(2, size=3))
            value, discount = value + discount * reward, discount * mdp.gamma
        assert rewards[np.ravel_multi_index(tuple(obs), STATE)] == reward
        total.append(value)
    assert np.mean(total) == pytest.approx(expected_return(mdp, uniform(np.ones(mdp.R.shape, bool))), abs=0.08)


def test_bad_datasets_say_what_to_change() -> None:
    rng = np.random.default_rng(4)
    data, _ = logged(clinic(rng), 5, rng)
    with pytest.raises(ValueError, match="the dataset is empty"):
        replace(data, states=data.states[:0])
    with pytest.raises(ValueError, match="the behaviour policy has no support for transition 0"):
        replace(data, propensity=np.zeros_like(data.propensity))
    with pytest.raises(ValueError, match="Box action space"):
        OfflineAgent(spaces.Box(-1, 1, (2,)), np.arange(5)[:, None], OfflineConfig())
    with pytest.raises(ValueError, match="no partition"):
        OfflineAgent(spaces.MultiDiscrete([2, 3]), np.arange(5)[:, None], OfflineConfig(blocks=((0,),)))
    with pytest.raises(ValueError, match="state 4, and there are features of states 0 to 3"):
        OfflineAgent(spaces.MultiDiscrete([2, 3]), np.arange(4)[:, None], OfflineConfig()).learn(
            replace(data, next_states=np.full_like(data.states, 4))
        )
    with pytest.raises(ValueError, match="use one of its space"):
        OfflineAgent(spaces.MultiDiscrete([3, 3]), np.arange(5)[:, None], OfflineConfig()).learn(data)


def test_fronts_and_selection() -> None:
    assert pareto([(1, 1), (2, 0), (0, 2), (1, 0), (1, 1)]) == [0, 1, 2, 4]
    rows = [{"validation_ess": e, "validation_wis": w} for e, w in ((300, 0.1), (250, 0.3), (20, 0.9))]
    assert select(rows, 200) is rows[1]
    assert select(rows, 400) is rows[0]


def test_a_summary_has_students_intervals_and_counts_datasets_where_no_threshold_had_the_ess() -> None:
    estimates = {"learner": "BC", "threshold": 0.1, "validation_wis": 0.5, "test_ess": 30.0, "test_fqe": 0.5}
    true = [0.4, 0.5, 0.6]
    rows = [
        [estimates | {"validation_ess": ess, "true": value, "test_wis": value}]
        for ess, value in zip([60.0, 20.0, 49.0], true, strict=True)
    ]
    selected = _summary(rows, min_ess=50)["selected"]["BC"]
    assert selected["below_min_ess"] == 2
    low, high = stats.ttest_1samp(true, 0).confidence_interval(0.95)
    for column in ("true", "test_wis"):
        assert selected[column] == pytest.approx({"value": 0.5, "low": low, "high": high})


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("datasets", 0),
        ("episodes", 0),
        ("thresholds", []),
        ("thresholds", [0.1, np.nan]),
        ("thresholds", [-3, 0.1]),
        ("thresholds", [0.1, 7]),
        ("updates", 0),
        ("polyak", 0),
        ("epsilon", 1.5),
        ("min_ess", -1),
    ],
)
def test_a_config_that_nothing_can_be_measured_with_is_refused(field: str, bad: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        JOB.Config.model_validate({field: bad})


@pytest.mark.slow(60)
def test_the_smoke_run_holds_its_golden_numbers(tmp_path: Path) -> None:
    pytest.importorskip("icu_sepsis", reason="needs icu-sepsis")
    result = JOB.execute(JOB.presets["smoke"] | {"updates": 20, "datasets": 1}, tmp_path)
    assert all(check["holds"] for check in result["checks"]), result["checks"]
    for cohort_result in result["results"].values():
        for row in cohort_result["rows"]:
            assert 1 <= row["test_ess"] <= 300
    assert (tmp_path / "figures" / "sepsis.png").exists()
