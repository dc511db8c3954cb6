"""Fits of tilts in closed form, and the loss that the trainer's own is compared with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.fitted_tilts import BIAS, INCREMENTS, OWN, RETURN, WEIGHTED, WORDS, reward_weights, weighted_likelihood
from benchmarks.record import read
from benchmarks.redraw import ROOT
from benchmarks.tilt_fits import FROZEN, RANK, by_fit, summary
from benchmarks.tilt_regressions import Design, increment_tilt, return_tilt
from value_heads.length_features import NUM_LENGTH_FEATURES
from value_heads.prompt_features import FEATURES
from value_heads.tilt import STOP, Tilt, zero_tilt
from value_heads.tilt_fit import TiltRows

RESULTS, DOCUMENT = read(ROOT / "results/tilt_fits/default.json"), (ROOT / "docs/values.md").read_text()
VOCABULARY, WIDTH, LENGTH, GROUP = 7, 3, 4, 5  # of a rollout, in tokens; rollouts of a prompt
ROLLOUTS = 80 * GROUP
HEAD = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(9))
ZERO = zero_tilt(VOCABULARY, WIDTH, (), (0,))
ROLLOUT_N = torch.arange(ROLLOUTS).repeat_interleave(LENGTH)
PROMPT_M = torch.arange(ROLLOUTS) // GROUP
LITTLE = (1e-3,)  # a penalty


def random_rows() -> TiltRows:
    """Every token is a candidate; the first alone stops. States, words and draws are independent."""
    generator, count = torch.Generator().manual_seed(0), ROLLOUTS * LENGTH
    features = torch.rand(count, VOCABULARY, len(FEATURES), generator=generator) < 0.3
    features[..., STOP] = torch.arange(VOCABULARY) == 0
    return TiltRows(
        states_ND=torch.randn(count, WIDTH, generator=generator) * 2 + 1,
        candidates_NK=torch.arange(VOCABULARY).expand(count, -1),
        logprobs_NK=torch.full((count, VOCABULARY), -float(torch.tensor(VOCABULARY).log()) - 1e-7),
        features_NKF=features,
        drawn_N=torch.randint(VOCABULARY, (count,), generator=generator),
        advantages_N=torch.zeros(count),
        lengths_NL=torch.rand(count, NUM_LENGTH_FEATURES, generator=generator),
    )


ROWS = random_rows()


def additions(tilt: Tilt) -> Tensor:
    """A(s, .) at each position, [N, V], less its mean over tokens."""
    with_one = torch.cat([ROWS.states_ND, torch.ones(len(ROWS), 1)], 1)
    gates_NF = with_one @ tilt.gates.T
    assert tilt.length_stop is not None
    gates_NF[:, STOP] += ROWS.lengths_NL @ tilt.length_stop
    low_rank_NV = with_one @ tilt.state_factor.T @ (tilt.token_factor @ HEAD.T)
    sum_NV = tilt.bias + low_rank_NV + torch.einsum("nf,nvf->nv", gates_NF, ROWS.features_NKF.float())
    return sum_NV - sum_NV.mean(1, keepdim=True)


def with_rewards(rewards_M: Tensor) -> TiltRows:
    return replace(ROWS, advantages_N=rewards_M[ROLLOUT_N])


def sums(values_N: Tensor) -> Tensor:
    """Over each rollout."""
    return values_N.view(-1, LENGTH).sum(1)


@pytest.mark.parametrize("rank", [1, WIDTH])
def test_a_tilt_is_the_function_that_its_weights_are_of(rank: int) -> None:
    """At each state, for every token, up to a constant of the state."""
    design = Design.of(ROWS, HEAD, rank)
    width = design.features(ROWS.at(torch.arange(1))).shape[1]
    weights_X = torch.randn(width, generator=torch.Generator().manual_seed(1))
    of_tokens = [replace(ROWS, drawn_N=torch.full_like(ROWS.drawn_N, token)) for token in range(VOCABULARY)]
    values_NV = torch.stack([design.features(rows) @ weights_X for rows in of_tokens], 1)
    expected_NV = values_NV - values_NV.mean(1, keepdim=True)
    torch.testing.assert_close(additions(design.tilt(weights_X, ZERO)), expected_NV, atol=1e-3, rtol=1e-3)


def test_an_additive_reward_is_recovered_exactly_from_returns() -> None:
    """A is the number of each token, up to a constant, whatever else it could read."""
    bias_V = torch.tensor([0.5, -1.0, 2.0, 0.0, -0.3, 1.2, -2.0])
    rows = with_rewards(sums(bias_V[ROWS.drawn_N]))
    tilt = return_tilt(rows, ROLLOUT_N, PROMPT_M, HEAD, ZERO, WIDTH, LITTLE)
    expected_V = bias_V - bias_V.mean()
    torch.testing.assert_close(additions(tilt), expected_V.expand(len(ROWS), -1), atol=0.02, rtol=0)


def test_a_reward_that_the_state_decides_is_recovered_from_returns_at_full_rank() -> None:
    design = Design.of(ROWS, HEAD, WIDTH)
    features_NX = design.features(ROWS)
    weights_X = torch.randn(features_NX.shape[1], generator=torch.Generator().manual_seed(2))
    rows = with_rewards(sums(features_NX @ weights_X))
    tilt = return_tilt(rows, ROLLOUT_N, PROMPT_M, HEAD, ZERO, WIDTH, LITTLE)
    expected_NV = additions(design.tilt(weights_X, ZERO))
    fitted_NV = additions(tilt)
    assert (fitted_NV - expected_NV).square().mean() < 0.01 * expected_NV.square().mean()


def test_a_regression_on_increments_is_least_squares() -> None:
    """Of the increments less what is linear in the state, as torch solves it."""
    generator = torch.Generator().manual_seed(3)
    increments_N = ROWS.states_ND[:, 0] + torch.randn(len(ROWS), generator=generator)
    tilt = increment_tilt(ROWS, increments_N, PROMPT_M[ROLLOUT_N], HEAD, ZERO, 2, LITTLE)
    design = Design.of(ROWS, HEAD, 2)
    axes_Np = torch.cat([torch.ones(len(ROWS), 1), ROWS.states_ND @ design.state_pD.T], 1).double()
    features_NX, increments_N = design.features(ROWS).double(), increments_N.double()

    def least_squares(inputs: Tensor, targets: Tensor) -> Tensor:
        return torch.linalg.lstsq(inputs, targets[:, None], driver="gelsd").solution[:, 0]

    targets_N = increments_N - axes_Np @ least_squares(axes_Np, increments_N)
    expected = design.tilt(least_squares(features_NX, targets_N).float(), ZERO)
    torch.testing.assert_close(additions(tilt), additions(expected), atol=5e-3, rtol=1e-2)


def test_the_weighted_likelihood_is_highest_where_q_is_the_weighted_policy() -> None:
    """q(a) ∝ π(a) E[w | a] without a KL term; A = 0 is best where all weights are equal."""
    weights_V = torch.tensor([0.2, 0.4, 0.8, 1.0, 1.4, 1.6, 1.6])
    drawn_N = torch.arange(VOCABULARY).repeat(20)
    rows = replace(ROWS.at(torch.arange(len(drawn_N))), drawn_N=drawn_N, advantages_N=weights_V[drawn_N])
    additions_NK = weights_V.log().expand(len(drawn_N), -1).clone().requires_grad_()
    weighted_likelihood(additions_NK, rows, 0.0).backward()
    assert additions_NK.grad is not None
    torch.testing.assert_close(additions_NK.grad.sum(0), torch.zeros(VOCABULARY), atol=1e-5, rtol=0)


def test_weights_have_a_mean_of_one_within_each_prompt() -> None:
    groups_M = torch.tensor([0, 0, 1, 1, 1])
    weights_M = reward_weights(torch.tensor([0.0, 1.0, -1.0, 0.0, 2.0]), groups_M)
    assert [float(weights_M[groups_M == group].mean()) for group in (0, 1)] == pytest.approx([1, 1])
    assert float(weights_M[1] / weights_M[0]) == pytest.approx(torch.tensor(1.0).exp().item())


def test_fits_are_compared_with_the_kind_that_validation_prompts_preferred() -> None:
    """Prompt by prompt; a trial whose text is outside the limits does not count."""
    common = {"task": "keywords", "strength": 1.0, "kl": 2.0, "perplexity": 9.0}
    lines = {  # rewards on validation prompts inside the limits and outside, and on held-out prompts
        (FROZEN, 0): (0.1, 0.0, [0.0, 1.0]),
        (BIAS, 0): (0.2, 0.9, [1.0, 0.0]),
        (WORDS, 0): (0.4, 0.0, [1.0, 2.0]),
        (OWN, RANK): (0.3, 0.0, [9.0, 9.0]),
        (RETURN, RANK): (0.8, 0.0, [2.0, 4.0]),
    }
    rows = [
        common
        | {"fit": fit, "rank": rank, "rewards": rewards}
        | {"tried": [{"reward": inside, "usual": True}, {"reward": outside, "usual": False}]}
        for (fit, rank), (inside, outside, rewards) in lines.items()
    ]
    cells = summary(rows)
    assert [cell["less_own"] and cell["less_own"]["mean"] for cell in cells] == [-1.0, -1.0, None, 7.5, 1.5]
    assert by_fit({"cells": cells}).splitlines()[2].startswith(f"| {FROZEN} | 0.50 [0.00, 1.00] | -1.00 [-1.00, -1.00]")


def test_the_document_says_what_the_results_file_has() -> None:
    """The claims of docs/values.md, section "How a tilt is fitted"."""
    cells = {(cell["task"], cell["fit"]): cell for cell in RESULTS["cells"] if cell["rank"] in (0, RANK)}
    picks = {task: fit for (task, fit), cell in cells.items() if cell["less_own"] is None}
    assert picks == {"keywords": WORDS, "extraction": OWN, "instructions": WORDS}
    others = [cell for cell in RESULTS["cells"] if cell["less_own"] is not None]
    assert all(cell["less_own"]["low"] <= 0 for cell in others)
    own, *regressions = (cells["keywords", fit] for fit in (OWN, RETURN, INCREMENTS))
    assert all(cell["rewards"]["low"] > own["rewards"]["high"] and cell["kl"] > own["kl"] for cell in regressions)
    means = [f"{cell['rewards']['mean']:.2f}"[1:] for cell in (*regressions, own)]
    assert "({} and {} for {}, intervals apart)".format(*means) in DOCUMENT
    of_extraction = {fit: cell["less_own"] for (task, fit), cell in cells.items() if task == "extraction"}
    assert of_extraction[WEIGHTED]["low"] < 0 < of_extraction[WEIGHTED]["high"]
    for fit in (RETURN, INCREMENTS):
        reward, frozen = (cells["extraction", name]["rewards"] for name in (fit, FROZEN))
        assert of_extraction[fit]["high"] < 0 and reward["low"] < frozen["high"]
    of_instructions = [cell["less_own"] for (task, _), cell in cells.items() if task == "instructions"]
    assert all(cell["low"] <= 0 <= cell["high"] for cell in of_instructions if cell)
