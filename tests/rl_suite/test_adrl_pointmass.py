"""The run over agents and bins: its smoke preset, and a run cut off between two seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

pytest.importorskip("dm_control", reason="needs the rl extra")

from rl_suite import adrl_pointmass
from rl_suite.adrl_pointmass import JOB, PointMassConfig, _comparisons, _parity
from rl_suite.control import PointMasses, make_vector
from training.run import Cancelled, Run

TINY = {"bins": (9,), "repeats": 1, "steps": 2400, "evaluations": 2, "episodes": 1, "speed_steps": 200}


@pytest.mark.slow(40)
@pytest.mark.parametrize("task", ["point_mass-easy", "walker-stand"])  # the state of the second cannot be saved
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path, task: str) -> None:
    config = TINY | {"bins": (3,), "variants_at": (), "task": task}
    uninterrupted = JOB.execute(config, tmp_path / "whole")
    stop_answers = iter([False] * 7 + [True] * 100)
    with pytest.raises(Cancelled):
        JOB.execute(config, tmp_path / "cut", should_stop=lambda: next(stop_answers))
    curves = [json.loads(file.read_text()) for file in (tmp_path / "cut" / "agents").glob("*/curve.json")]
    assert sorted(map(len, curves)) == [1, 2]  # one agent had been trained, another half
    resumed = JOB.execute(config | {"workers": 2}, tmp_path / "cut")
    assert resumed["curves"] == uninterrupted["curves"]
    assert resumed["table"] == uninterrupted["table"]
    assert all(check["holds"] for check in uninterrupted["checks"]), uninterrupted["checks"]
    assert (tmp_path / "cut" / "figures" / "curves.png").exists()


@pytest.mark.slow(30)
def test_every_variant_runs_on_a_harder_task(tmp_path: Path) -> None:
    short = {"steps": 1200, "evaluations": 1}
    result = JOB.execute(TINY | short | {"task": "reacher-hard", "variants_at": (9,)}, tmp_path)
    assert len(result["curves"]) == 8
    assert (tmp_path / "figures" / "curves.png").exists()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"bins": [9]}, "variants_at: 17 is not in bins, 9"),
        ({"agents": ["DQN", "AD-DQN"]}, "variants_at: the variants are compared with DecQN, which is not in agents"),
        ({"agents": ["DQN"]}, "variants_at: the variants are compared with DecQN, AD-DQN, which is not in agents"),
        ({"bins": []}, "bins"),
        ({"bins": [1], "variants_at": []}, "bins"),
        *(({field: 0}, field) for field in ("repeats", "steps", "evaluations", "episodes", "n_step", "explore")),
        *(({field: 0}, field) for field in ("hold", "speed_steps", "workers")),
        ({"speed_steps": 1}, "speed_steps"),
        ({"task": "point_mas-easy"}, "dm_control has no point_mas-easy"),
        ({"task": "walker-stand"}, "33 bins of 6 factors .*: leave DQN out of agents, or take fewer bins"),
    ],
)
def test_a_config_that_nothing_can_be_measured_with_is_refused(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PointMassConfig.model_validate(bad)


def test_a_variant_that_is_named_among_the_agents_too_is_planned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adrl_pointmass, "train", lambda *_: [1.0, 2.0])
    monkeypatch.setattr(adrl_pointmass, "_speed", lambda *_: {"ratio": 1.0})
    config = PointMassConfig.model_validate(
        TINY | {"variants_at": (9,), "agents": ("DecQN", "AD-DQN", "AD-DQN, weighted")}
    )
    run = Run(tmp_path, 0)
    assert len(adrl_pointmass.run(config, run)["curves"]) == 7
    assert run.planned_steps == 2 + 7


@pytest.mark.parametrize("preset", list(JOB.presets))
def test_every_preset_is_a_config(preset: str) -> None:
    PointMassConfig.model_validate(JOB.presets[preset])


def test_areas_are_compared_by_pairs_of_seeds(tmp_path: Path) -> None:
    """Seeds differ far more than the agents do, and one agent is above the other in each."""
    decqn = [[10.0 * seed] * 2 for seed in range(6)]
    ad_dqn = [[area + 1 + seed / 10 for area in curve] for seed, curve in enumerate(decqn)]
    curves = {"9, DecQN": decqn, "9, AD-DQN": ad_dqn}
    (comparison,) = _comparisons(curves, Run(tmp_path, 0)).values()
    assert comparison["gap"]["value"] == pytest.approx(1.25) and 1 < comparison["gap"]["low"] < 1.25
    assert "AD-DQN is better" in comparison["verdict"]


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    curves = {"9, DecQN": [[10.0, 20.0]], "9, AD-DQN": [[10.0, 21.0]]}
    (comparison,) = _comparisons(curves, Run(tmp_path, 0)).values()
    assert comparison["verdict"] == "9 bins, AD-DQN less DecQN: area +0.5, one run of each: no interval"


def test_other_rewards_than_dm_controls_fail_the_check_of_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _parity() <= 1e-12
    monkeypatch.setattr(PointMasses, "_rewards", lambda envs, controls: np.zeros(envs.num_envs))
    assert _parity() > 0.5


@pytest.mark.slow(4)
def test_evaluations_start_where_no_training_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[np.ndarray] = []

    def recorded(*options: Any) -> Any:
        envs = make_vector(*options)
        reset = envs.reset

        def start(**seeds: Any) -> Any:
            observations, info = reset(**seeds)
            starts.append(observations)
            return observations, info

        monkeypatch.setattr(envs, "reset", start)
        return envs

    monkeypatch.setattr(adrl_pointmass, "make_vector", recorded)
    config = PointMassConfig(task="cartpole-balance", steps=16, evaluations=1, episodes=2)
    adrl_pointmass.train(tmp_path, 3, "DecQN", 0, config, lambda: None)
    training, evaluation = starts
    assert len(training) == 16 and len(evaluation) == 2
    assert not (evaluation[:, None] == training).all(axis=2).any()
