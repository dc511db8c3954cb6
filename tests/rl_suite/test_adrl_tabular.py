"""Action decomposition on finite MDPs: exact answers, adjustment, and errors that say what to change."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from rl_suite.adrl_tabular import JOB, exponents
from rl_suite.factors import check_blocks
from rl_suite.learners import Model, learned_q, sample, steps_needed
from rl_suite.mdp import (
    MDP,
    expected_return,
    greedy,
    interacting_mdp,
    optimal_q,
    policy_value,
    product_mdp,
    separable_mdp,
)
from rl_suite.projection import backdoor, bias, combine, naive, project

SEPARATE_BLOCKS = ((0,), (1,))


def test_product_and_separable_mdps_are_unbiased_and_interacting_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    assert bias(product_mdp(rng, (3, 2), (3, 4))).q <= 1e-12
    assert bias(separable_mdp(rng, 5, (3, 4))).q <= 1e-12
    interacting_bias = bias(interacting_mdp(rng, 5, (3, 4)))
    assert not interacting_bias.unbiased
    assert interacting_bias.decomposed[1] < interacting_bias.optimal


def xor_mdp(seed: int) -> MDP:
    """Three states; either of two actions of each of two factors, which matter only by whether they are equal."""
    rng = np.random.default_rng(seed)
    P = rng.dirichlet(np.full(3, 0.2), (3, 2))[:, [0, 1, 1, 0]]
    return MDP(P, np.repeat(rng.random((3, 1)), 4, axis=1), np.full(3, 1 / 3), (2, 2), 0.95)


@pytest.mark.parametrize("seed", range(8))
def test_the_range_of_returns_is_that_of_all_policies_that_tie(seed: int) -> None:
    """The additive part of an XOR is flat: every policy is greedy for it."""
    mdp = xor_mdp(seed)
    returns = [expected_return(mdp, np.eye(4)[list(actions)]) for actions in product(range(4), repeat=3)]
    assert bias(mdp).decomposed == pytest.approx((min(returns), max(returns)))


def test_an_endless_policy_is_refused_where_nothing_is_discounted() -> None:
    """Two states and an end, which action 0 never reaches: its parts of 1 do not add up to it exactly."""
    P = np.zeros((3, 2, 3))
    P[0] = P[1] = [[0.3, 0.7, 0], [0.1, 0.2, 0.7]]
    mdp = MDP(P, np.array([[1.0, 1], [1, 1], [0, 0]]), np.array([1.0, 0, 0]), (2,), 1.0)
    assert expected_return(mdp, np.eye(2)[[1, 1, 0]]) == pytest.approx(1 / 0.7)
    with pytest.raises(ValueError, match="may never end: give the MDP a"):
        expected_return(mdp, np.eye(2)[[0, 0, 0]])


def test_a_block_of_the_factors_that_interact_removes_the_bias() -> None:
    rng = np.random.default_rng(1)
    mdp = interacting_mdp(rng, 4, (2, 3))
    extra = MDP(np.repeat(mdp.P, 2, axis=1), np.repeat(mdp.R, 2, axis=1), mdp.start, (2, 3, 2), mdp.gamma)
    assert bias(extra, [(0, 1), (2,)]).unbiased
    assert not bias(extra).unbiased


def test_projected_values_add_up_to_q_without_interaction() -> None:
    mdp = separable_mdp(np.random.default_rng(2), 5, (3, 4))
    policy = np.full(mdp.R.shape, 1 / 12)
    value = policy_value(mdp, policy)
    projected = [project(mdp, SEPARATE_BLOCKS, b, policy).q_of(value) for b in (0, 1)]
    assert np.allclose(combine(projected, value, mdp.sizes, SEPARATE_BLOCKS), mdp.q_of(value))


def test_adjusting_for_the_state_recovers_the_effect_and_ignoring_it_does_not() -> None:
    law = np.array([[[0.9, 0.1], [0.8, 0.2]], [[0.3, 0.7], [0.2, 0.8]]])  # P(y | z, x)
    behaviour = np.array([[0.9, 0.1], [0.1, 0.9]])  # π_b(x | z): sicker patients get x = 1
    counts = np.array([3000, 1000])[:, None, None] * behaviour[:, :, None] * law
    truth = 0.75 * law[0] + 0.25 * law[1]  # P(z) is of all transitions, whatever x
    assert np.allclose(backdoor(counts), truth)
    assert np.abs(naive(counts) - truth).max() > 0.2


def test_learning_from_a_confounded_log_converges_to_the_true_q() -> None:
    rng = np.random.default_rng(3)
    mdp = separable_mdp(rng, 3, (2, 3))
    confounded_policy = np.tile(np.array([0.4, 0.04, 0.04, 0.04, 0.08, 0.4]), (3, 1))  # the two factors go together
    q = learned_q(sample(mdp, confounded_policy, 60_000, rng), 3, mdp.sizes, SEPARATE_BLOCKS, mdp.gamma)
    assert np.abs(q - optimal_q(mdp)).max() < 0.05


@pytest.mark.parametrize("blocks", [SEPARATE_BLOCKS, ((0, 1),)])
def test_one_transition_at_a_time_comes_to_the_batch_fit(blocks: tuple[tuple[int, ...], ...]) -> None:
    rng = np.random.default_rng(4)
    mdp = separable_mdp(rng, 3, (2, 3))
    log = sample(mdp, np.full(mdp.R.shape, 1 / 6), 300, rng)
    model, batch = (Model(3, mdp.sizes, blocks, mdp.gamma) for _ in range(2))
    for s, a, r, next_state in zip(*log, strict=True):
        model.add(int(s), int(a), float(r), int(next_state))
    batch.fit(log)
    assert np.allclose(model.q(np.zeros(3), 400), batch.q(np.zeros(3), 400), atol=1e-6)


def test_a_pair_is_known_once_each_of_its_blocks_actions_is() -> None:
    model = Model(1, (2, 2), SEPARATE_BLOCKS, 0.9)
    model.add(0, 0, 1.0, 0)  # (0, 0)
    model.add(0, 3, 1.0, 0)  # (1, 1)
    assert not model.unknown(1).any()  # (0, 1) and (1, 0) never happened, but each of their parts did
    joint = Model(1, (2, 2), ((0, 1),), 0.9)
    joint.add(0, 0, 1.0, 0)
    joint.add(0, 3, 1.0, 0)
    assert joint.unknown(1).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("visits", [0, 8])
def test_exploring_learners_end_with_a_good_policy(visits: int) -> None:
    mdp = separable_mdp(np.random.default_rng(5), 4, (3, 3))
    worth = 0.99 * expected_return(mdp, greedy(optimal_q(mdp)))

    def good(q: np.ndarray) -> bool:
        return expected_return(mdp, greedy(q)) >= worth

    most = 2**14
    assert steps_needed(mdp, SEPARATE_BLOCKS, good, np.random.default_rng(6), most, visits) < most


def test_exponents_of_a_known_law_come_back() -> None:
    shapes = [(4, 4), (8, 16), (16, 64), (12, 81)]
    rows = [{"sum": s, "product": p, "counts": {"x": [3 * s**1.5 * p**0.25] * 4}} for s, p in shapes]
    fit = exponents(rows, "x", 50, np.random.default_rng(0))
    assert np.allclose([fit["sum"][0], fit["product"][0]], [1.5, 0.25])
    assert np.allclose(fit["sum"], 1.5)  # no noise, no width
    with pytest.raises(ValueError, match="do not tell"):
        exponents(rows[:2], "x", 50, np.random.default_rng(0))


def test_bad_input_says_what_to_change() -> None:
    with pytest.raises(ValueError, match="no partition: each of the factors 0 to 1 must be in exactly one block"):
        check_blocks([(0,), (0, 1)], 2)
    with pytest.raises(ValueError, match="the dataset is empty"):
        learned_q((np.array([], int),) * 4, 3, (2, 2), SEPARATE_BLOCKS, 0.9)
    with pytest.raises(ValueError, match="action 1 was never taken at covariate 0"):
        backdoor(np.array([[[1, 1], [0, 0]], [[1, 1], [1, 1]]]))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"shapes": [[2, 2], [2, 4], [2, 8]]}, "do not tell"),
        ({"shapes": [[2, 2]]}, "do not tell"),
        ({"shapes": [[0, 2], [2, 4], [3, 3]]}, "greater than 0"),
        ({"weight": 0.5}, "weight 0.5 times 4 factors is above 1: at most 0.25"),
        ({"repeats": 0}, "repeats"),
        ({"states": 1}, "states"),
        ({"accuracy": 0}, "accuracy"),
        ({"visits": 0}, "visits"),
        ({"most": 0}, "most"),
        ({"resamples": 0}, "resamples"),
    ],
)
def test_a_config_that_nothing_can_be_measured_with_is_refused(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        JOB.Config.model_validate(bad)


def test_a_box_action_space_is_refused() -> None:
    spaces = pytest.importorskip("gymnasium.spaces", reason="needs gymnasium")
    from rl_suite.factors import sizes_of

    with pytest.raises(ValueError, match="Box action space"):
        sizes_of(spaces.Box(-1, 1, (2,)))
    assert sizes_of(spaces.MultiDiscrete([3, 4])) == (3, 4)
    with pytest.raises(ValueError, match=r"Discrete\(3, start=1\): actions must start at 0"):
        sizes_of(spaces.Discrete(3, start=1))


@pytest.mark.slow(20)
def test_the_smoke_run_holds_its_golden_numbers(tmp_path: Path) -> None:
    pytest.importorskip("icu_sepsis", reason="needs icu-sepsis")
    result = JOB.execute(JOB.presets["smoke"], tmp_path)
    assert all(check["holds"] for check in result["checks"]), result["checks"]
    assert result["sepsis"]["all"]["decomposed"] == pytest.approx([0.7951, 0.8621], abs=1e-4)
    fits = result["exponents"]
    assert fits["accuracy_projected"]["product"][0] < fits["accuracy_joint"]["product"][0]
    assert (tmp_path / "figures" / "samples.png").exists()
