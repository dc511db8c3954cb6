"""Exact moments against steps that are really taken, and the search for a transient's end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.bilevel.algorithms.sparkle import Sparkle
from training.bilevel.problems import quadratic
from training.bilevel.studies.moments import moments, recursion, squared_gradients
from training.bilevel.studies.quadratic_measurements import D_SOBA, decentralized, strategies
from training.bilevel.studies.transient import (
    JOB,
    METHODS,
    THETA,
    TransientConfig,
    _Ratios,
    mixing,
    transient,
    tuned,
)
from training.bilevel.studies.transient_slopes import slopes
from training.bilevel.topology import spectral_gap
from training.run import Cancelled

AGENTS, NOISE, ALPHA = 3, 0.7, 0.05
TINY = {"repeats": 2, "agents": 2, "gaps": (0.25, 0.125, 0.0625), "sizes": (2, 3, 4), "powers": (4, 20)}


@pytest.fixture
def problem() -> quadratic.Quadratic:
    return quadratic.draw(AGENTS, x_size=2, y_size=2, heterogeneity=1.0, seed=3)


def algorithm(method: str, gap: float, problem: quadratic.Quadratic) -> Sparkle:
    return tuned(problem, *strategies(method, mixing(AGENTS, gap)), ALPHA)


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_without_noise_is_where_the_steps_lead(method: str, problem: quadratic.Quadratic) -> None:
    sparkle = algorithm(method, 0.3, problem)
    state = sparkle.start(torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), problem)
    for _ in range(64):
        state = sparkle.step(state, problem)
    after = moments(recursion(sparkle, problem, 0.0), doublings=6)
    assert torch.allclose(after.mean, torch.cat([leaf.flatten() for leaf in state]), rtol=0, atol=1e-12)
    assert after.covariance.abs().max() == 0
    gradients = torch.stack([quadratic.hypergradient(problem, x) for x in state.x]).square().sum(1).mean()
    mean_gradient = quadratic.hypergradient(problem, state.x.mean(0)).square().sum()
    measured = squared_gradients(after, problem)
    assert measured.every_agent == pytest.approx(float(gradients))
    assert measured.mean_agent == pytest.approx(float(mean_gradient))


def test_doubling_gives_the_moments_of_each_step_in_turn(problem: quadratic.Quadratic) -> None:
    step = recursion(algorithm("ED", 0.3, problem), problem, NOISE)
    mean, covariance = torch.zeros_like(step.offset), torch.zeros_like(step.transition)
    for _ in range(32):
        mean = step.transition @ mean + step.offset
        covariance = step.transition @ covariance @ step.transition.T + step.noise @ step.noise.T
    after = moments(step, doublings=5)
    assert torch.allclose(after.mean, mean, rtol=0, atol=1e-12)
    assert torch.allclose(after.covariance, covariance, rtol=0, atol=1e-12)


def test_noisy_steps_spread_as_the_moments_say(problem: quadratic.Quadratic) -> None:
    draws = 3000
    x_less_solution = decentralized(
        ["ATC-GT"],
        mixing(AGENTS, 0.3),
        [problem] * draws,
        step_sizes={"alpha": ALPHA, "beta": 2 * ALPHA, "gamma": 2 * ALPHA},
        theta=THETA,
        noise=NOISE,
        steps=16,
        every=16,
        measure=lambda x, solution: x - solution[..., None, :],
        seed=0,
    )[0, 0]  # [draws, agents, 2]
    solution = quadratic.solution(problem)
    slope = [quadratic.hypergradient(problem, solution + unit) for unit in torch.eye(2, dtype=torch.float64)]
    sample = (x_less_solution @ torch.stack(slope)).square().sum(-1).mean(-1)
    step = recursion(algorithm("ATC-GT", 0.3, problem), problem, NOISE)
    expected = squared_gradients(moments(step, doublings=4), problem).every_agent
    assert abs(float(sample.mean()) - expected) < 4 * float(sample.std()) / draws**0.5


def test_agents_that_average_exactly_are_one_agent(problem: quadratic.Quadratic) -> None:
    """With heterogeneity, of D-SOBA: all agents stay equal, so that the errors of each and of their mean are one."""
    measured = squared_gradients(moments(recursion(algorithm(D_SOBA, 1.0, problem), problem, NOISE), 8), problem)
    assert measured.every_agent == pytest.approx(measured.mean_agent)


@pytest.mark.parametrize("gap", [1.0, 0.25, 0.01])
def test_the_mixing_matrix_has_the_gap(gap: float) -> None:
    assert spectral_gap(mixing(5, gap)) == pytest.approx(gap)


@given(end=st.floats(4.01, 29.9), slope=st.floats(0.2, 3))
def test_the_end_of_a_transient_is_found(end: float, slope: float) -> None:
    assert transient(lambda power: 2 * 2 ** (slope * (end - power)), (4, 30)) == pytest.approx(end)


@pytest.mark.parametrize("ratio", [1.0, 3.0, float("nan")])
def test_a_transient_outside_the_horizons_has_no_length(ratio: float) -> None:
    assert transient(lambda power: ratio, (4, 30)) is None


def test_steps_that_diverge_at_short_horizons_are_a_transient() -> None:
    assert transient(lambda power: float("nan") if power < 10 else 1.0, (4, 30)) == 10


def test_slopes_over_n_are_of_the_same_n_for_all_methods() -> None:
    """Exponent 4 up to n = 8 and 3 beyond; the last length of D-SOBA is beyond the horizons."""
    sizes = {"ED": [[8.0, 12.0, 15.0, 18.0]] * 2, D_SOBA: [[8.0, 12.0, 15.0, 18.0], [8.0, 12.0, 15.0, None]]}
    fitted = slopes({"gaps": {}, "sizes": sizes, "levels": {}}, (0.5, 0.25, 0.125), (4, 8, 16, 32))
    assert list(fitted) == ["n from 4 to 16", "n from 8 to 32"]
    assert fitted["n from 4 to 16"]["ED"]["of_repeats"] == pytest.approx([3.5, 3.5])
    assert fitted["n from 4 to 16"][D_SOBA]["of_repeats"] == pytest.approx([3.5, 3.5])
    assert fitted["n from 8 to 32"][D_SOBA]["of_repeats"] == [pytest.approx(3.0), None]
    assert fitted["n from 8 to 32"][D_SOBA]["band"] is None


def test_slopes_over_the_gap_are_of_the_smallest_with_a_length() -> None:
    rows = {"ED": [[None, 1.0, 3.0, 5.0, 8.0], [2.0, 4.0, 6.0, 8.0, None]]}
    gaps = tuple(2.0**-power for power in range(1, 6))
    fitted = slopes({"gaps": {"every_agent": rows}, "sizes": {}, "levels": {"lower": rows}}, gaps, (4,))
    assert fitted["gap, every_agent"]["ED"]["of_repeats"] == pytest.approx([2.5, 2.0])
    assert fitted["gap of the lower level"] == fitted["gap, every_agent"]


def test_runs_of_neighbouring_seeds_share_no_problem() -> None:
    drawn = {
        tuple(_Ratios(TransientConfig(seed=seed), 2, repeat).problem.e.flatten().tolist())
        for seed in (0, 1)
        for repeat in range(3)
    }
    assert len(drawn) == 6


@pytest.mark.slow(60)
def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    uninterrupted = JOB.execute(TINY, tmp_path / "uninterrupted")
    stop = iter([False] * 8 + [True])  # after the steps of a method with a "/" in its name
    with pytest.raises(Cancelled):
        JOB.execute(TINY, tmp_path / "broken", should_stop=lambda: next(stop))
    resumed = JOB.execute(TINY, tmp_path / "broken")
    assert {**resumed, "versions": None} == {**uninterrupted, "versions": None}
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("uninterrupted", "broken")]
    assert rows[0] == rows[1]
    assert (tmp_path / "uninterrupted" / "figures" / "transient.png").stat().st_size > 10_000
    json.dumps(uninterrupted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gaps": (0.1, 0.2, 0.3)}, "three gaps or more, falling"),
        ({"gaps": (0.5, 0.25)}, "three gaps or more, falling"),
        ({"sizes": (4, 16, 8)}, "rising numbers of agents, 2 or more each, not [4, 16, 8]"),
        ({"sizes": (1, 2, 4)}, "rising numbers of agents, 2 or more each"),
        ({"powers": (9, 60)}, "two rising powers from 0 to 48"),
    ],
)
def test_bad_settings_say_what_to_change(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        JOB.execute(settings, tmp_path)
