"""Action decomposition on finite MDPs: exact answers, adjustment, and errors that say what to change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rl_suite.adrl_tabular import JOB
from rl_suite.factors import check_blocks
from rl_suite.learners import learned_q, sample
from rl_suite.mdp import MDP, interacting_mdp, optimal_q, policy_value, product_mdp, separable_mdp
from rl_suite.projection import backdoor, bias, combine, naive, project

ALONE = ((0,), (1,))


def test_product_and_separable_mdps_are_unbiased_and_interacting_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    assert bias(product_mdp(rng, (3, 2), (3, 4))).q <= 1e-12
    assert bias(separable_mdp(rng, 5, (3, 4))).q <= 1e-12
    found = bias(interacting_mdp(rng, 5, (3, 4)))
    assert not found.unbiased
    assert found.decomposed[1] < found.optimal


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
    projected = [project(mdp, ALONE, b, policy).q_of(value) for b in (0, 1)]
    assert np.allclose(combine(projected, value, mdp.sizes, ALONE), mdp.q_of(value))


def test_adjusting_for_the_state_recovers_the_effect_and_ignoring_it_does_not() -> None:
    law = np.array([[[0.9, 0.1], [0.8, 0.2]], [[0.3, 0.7], [0.2, 0.8]]])  # P(y | z, x)
    behaviour = np.array([[0.9, 0.1], [0.1, 0.9]])  # π_b(x | z): sicker patients get x = 1
    counts = 1000 * 0.5 * behaviour[:, :, None] * law
    truth = law.mean(axis=0)
    assert np.allclose(backdoor(counts), truth)
    assert np.abs(naive(counts) - truth).max() > 0.2


def test_learning_from_a_confounded_log_converges_to_the_true_q() -> None:
    rng = np.random.default_rng(3)
    mdp = separable_mdp(rng, 3, (2, 3))
    together = np.tile(np.array([0.4, 0.04, 0.04, 0.04, 0.08, 0.4]), (3, 1))  # the two factors go together
    q = learned_q(sample(mdp, together, 60_000, rng), 3, mdp.sizes, ALONE, mdp.gamma)
    assert np.abs(q - optimal_q(mdp)).max() < 0.05


def test_bad_input_says_what_to_change() -> None:
    with pytest.raises(ValueError, match="no partition: each of the factors 0 to 1 must be in exactly one block"):
        check_blocks([(0,), (0, 1)], 2)
    with pytest.raises(ValueError, match="the dataset is empty"):
        learned_q((np.array([], int),) * 4, 3, (2, 2), ALONE, 0.9)
    with pytest.raises(ValueError, match="action 1 was never taken at covariate 0"):
        backdoor(np.array([[[1, 1], [0, 0]], [[1, 1], [1, 1]]]))


def test_a_box_action_space_is_refused() -> None:
    spaces = pytest.importorskip("gymnasium.spaces", reason="needs gymnasium")
    from rl_suite.factors import sizes_of

    with pytest.raises(ValueError, match="Box action space"):
        sizes_of(spaces.Box(-1, 1, (2,)))
    assert sizes_of(spaces.MultiDiscrete([3, 4])) == (3, 4)


def test_the_smoke_run_holds_its_golden_numbers(tmp_path: Path) -> None:
    pytest.importorskip("icu_sepsis", reason="needs icu-sepsis")
    result = JOB.execute(JOB.presets["smoke"], tmp_path)
    assert all(check["holds"] for check in result["checks"]), result["checks"]
    exponents = result["exponents"]
    assert exponents["projected over product"] < exponents["joint over product"]
    assert (tmp_path / "figures" / "samples.png").exists()
