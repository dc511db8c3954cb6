"""GPI's bounds, the teacher's gradient, and a run that goes on from where it was stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rl_suite.mdp import greedy, interacting_mdp, optimal_q, policy_value
from rl_suite.sf_exact import q_of_policy, random_family, successor_features, task, transfer
from rl_suite.sf_teacher import TeacherStudy, draw, psi, slope, step, train
from rl_suite.sf_transfer import while_learning
from training.run import Cancelled

TINY = {
    "mdps": 4,
    "repeats": 1,
    "teacher_steps": 512,
    "agents": 1,
    "four_room_tasks": 2,
    "four_room_steps": 200,
    "reacher_steps": 100,
    "evaluate_every": 50,
    "hidden": [8],
    "speed_seconds": 0.05,
}


def test_psi_times_w_is_q_for_any_w() -> None:
    rng = np.random.default_rng(0)
    mdp = interacting_mdp(rng, 6, (3,))
    phi, policy = rng.random((6, 3, 4)), rng.dirichlet(np.ones(3), 6)
    psi_pi = successor_features(mdp, phi, policy)
    for w in rng.standard_normal((5, 4)):
        assert np.allclose(psi_pi @ w, q_of_policy(task(mdp, phi, w), policy))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.99]))
def test_no_bound_is_violated(seed: int, epsilon: float, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    outcome = transfer(*random_family(rng, 5, 3, 3, 3, gamma), epsilon, rng)
    assert min(outcome.improvement, outcome.loss) >= -1e-8
    exact = transfer(*random_family(rng, 5, 3, 3, 3, gamma), 0.0, rng).exact
    assert exact is not None and exact >= -1e-8


def test_a_known_task_is_solved_at_once_by_sf_gpi_and_not_by_the_best_of_all_q() -> None:
    rng = np.random.default_rng(1)
    mdp, phi, task_weights, _ = random_family(rng, 10, 4, 4, 4, 0.9)
    outcome = transfer(mdp, phi, task_weights, task_weights[2], 0.0, rng)
    assert outcome.sf_gpi < 1e-9 < 1 < outcome.dqn_gpi
    best = optimal_q(task(mdp, phi, task_weights[2]))
    assert np.allclose(policy_value(task(mdp, phi, task_weights[2]), greedy(best)), best.max(axis=1))


def test_the_teachers_step_is_the_gradient_of_the_squared_error_to_a_fixed_target() -> None:
    study, rng = TeacherStudy(), np.random.default_rng(2)
    teacher, theta = rng.standard_normal((2, *study.shape))
    w = rng.standard_normal(study.features)
    batch = draw(study, teacher, w, 32, rng)
    s, a, phi, next_s = (torch.as_tensor(part) for part in batch)
    rows = torch.arange(32)

    def psi_of(parameters: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.einsum("dakp,bp->badk", parameters, states)).mean(3)

    parameters = torch.tensor(theta, requires_grad=True)
    after = psi_of(parameters, next_s).detach()
    target = phi + study.gamma * after[rows, (after @ torch.as_tensor(w)).argmax(1)]
    loss = (psi_of(parameters, s)[rows, a] - target).square().sum() / 2
    loss.backward()
    assert parameters.grad is not None
    expected = theta - 0.1 * parameters.grad.numpy() * study.hidden * study.actions / 32
    assert np.allclose(step(study, theta, batch, w, 0.1), expected)


def test_without_noise_the_teacher_stays_where_it_is_and_a_student_finds_it() -> None:
    unmoved = train(TeacherStudy(noise=0.0), np.random.default_rng(3), 64, start=0.0)
    assert unmoved.distance[-1] < 1e-12
    trained = train(TeacherStudy(noise=0.0), np.random.default_rng(3), 2048)
    assert trained.distance[-1] < 0.1 < 0.3 < trained.distance[0]
    assert psi(np.ones((1, 1, 1, 2)), np.array([[1.0, -3], [1, 1]])).ravel().tolist() == [0, 2]


def test_a_slope_is_the_exponent_of_a_power_law() -> None:
    x = np.array([1.0, 2, 5])
    assert np.isclose(slope(x, 3 * x**-0.5), -0.5)


def test_w_of_another_length_is_refused() -> None:
    rng = np.random.default_rng(4)
    mdp, phi, _, _ = random_family(rng, 4, 2, 3, 1, 0.9)
    with pytest.raises(ValueError, match="one weight for each of the 3 features is needed"):
        task(mdp, phi, np.ones(2))


@pytest.mark.parametrize("bad", [{"update_every": 0}, {"four_room_steps": 0}, {"hidden": []}, {"speed_seconds": 0}])
def test_a_config_that_nothing_can_be_trained_with_is_refused(bad: dict[str, Any]) -> None:
    pytest.importorskip("mo_gymnasium", reason="needs mo-gymnasium")
    from rl_suite.sf_gpi import JOB

    with pytest.raises(ValidationError, match=next(iter(bad))):
        JOB.Config.model_validate(bad)


@pytest.mark.slow(15)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    pytest.importorskip("mo_gymnasium", reason="needs mo-gymnasium")
    from rl_suite.sf_gpi import JOB

    job = replace(JOB, draw=None)
    uninterrupted = job.execute(TINY, tmp_path / "whole")
    for patience in (6, 25):  # in the tables, then between two tasks of the reacher
        stop = iter([False] * patience + [True])
        with pytest.raises(Cancelled):
            job.execute(TINY, tmp_path / "cut", should_stop=lambda stop=stop: next(stop))
    resumed = job.execute(TINY, tmp_path / "cut")
    assert _measured(resumed) == _measured(uninterrupted)
    rows = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    rows_without_speed = [[row for row in map(json.loads, part) if "speed" not in row] for part in rows]
    assert rows_without_speed[0] == rows_without_speed[1]
    JOB.execute(TINY, tmp_path / "cut")  # a finished run draws what it has not drawn
    assert (tmp_path / "cut" / "figures" / "transfer.png").exists()


def _measured(result: dict[str, Any]) -> dict[str, Any]:
    """All but wall-clock speed."""
    return {key: value for key, value in result.items() if key not in ("speed", "versions")}


@pytest.mark.slow(25)
def test_the_smoke_run_holds_its_golden_numbers(tmp_path: Path) -> None:
    pytest.importorskip("mo_gymnasium", reason="needs mo-gymnasium")
    from rl_suite.sf_gpi import JOB

    result = JOB.execute(JOB.presets["smoke"], tmp_path)
    assert all(check["holds"] for check in result["checks"]), result["checks"]


def test_the_return_while_learning_is_of_the_task_in_turn_after_the_first() -> None:
    curve = np.zeros((8, 3, 12))  # two evaluations of each of four tasks, three seeds
    for number, value in enumerate((100.0, 1.0, 2.0, 6.0)):
        curve[2 * number : 2 * number + 2, :, number] = value
    curve[2:4, 1, 1] = 4.0
    assert while_learning(curve) == pytest.approx([3.0, 4.0, 3.0])


@pytest.mark.slow(25)
def test_agents_in_two_processes_score_as_in_one(tmp_path: Path) -> None:
    pytest.importorskip("mo_gymnasium", reason="needs mo-gymnasium")
    from rl_suite.sf_gpi import JOB

    job = replace(JOB, draw=None)
    first, second = (job.execute(TINY | {"workers": count}, tmp_path / str(count)) for count in (1, 2))
    assert _measured(first | {"config": None}) == _measured(second | {"config": None})
    assert not list(tmp_path.glob("2/agents/*-[012].pt"))
