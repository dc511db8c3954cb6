"""Chain of thought: constants of chains, two implementations of one model, prefixes, the run's golden numbers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from theory.cot.data import (
    SLIDES,
    Chain,
    chain_of,
    output_chain_of,
    training_batch,
    training_steps,
    violating_chain,
)
from theory.cot.inference import attention_shares, cot_errors, draw_prompts, icl_errors
from theory.cot.job import JOB, SMOKE
from theory.cot.model import Models, Setting, attention, columns, dense_loss, gradient, loss, queries, train
from theory.patterns import orthonormal_combinations

D, M, K = 12, 6, 2


def a_batch(runs: int = 2) -> Any:
    generator = torch.Generator().manual_seed(0)
    alphas, lengths = torch.tensor([0.4, 1.0])[:runs], torch.tensor([5, 8])[:runs]
    return training_batch(generator, training_steps(0, M), K, lengths, alphas, 16)


def some_models(runs: int = 2) -> Models:
    torch.manual_seed(1)
    return Models(torch.randn(runs, 2 * D, 2 * D), torch.randn(runs, 2 * D, 2 * D))


def test_the_slides_matrices_have_their_constants() -> None:
    assert np.allclose(SLIDES.product, [[0.56, 0.44], [0.64, 0.36]])
    assert (SLIDES.tau, SLIDES.tau_o) == (pytest.approx(0.36), pytest.approx(0.56))
    assert SLIDES.correct.tolist() == [[0, 0, 1], [1, 1, 0]]
    assert SLIDES.condition_1.tolist() == [False, True]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(1, 3))
def test_tau_and_rho_are_those_of_enumerated_trajectories(seed: int, patterns: int, steps: int) -> None:
    matrices = np.random.default_rng(seed).dirichlet(np.ones(patterns), (steps, patterns))
    chain = Chain(matrices)
    best = []
    for start in range(patterns):
        paths = itertools.product(range(patterns), repeat=steps)
        best.append(
            max(np.prod([matrices[k][i, j] for k, (i, j) in enumerate(itertools.pairwise((start, *p)))]) for p in paths)
        )
    assert chain.tau == pytest.approx(min(best))
    for A in matrices:
        others = np.where(A.max(axis=1, keepdims=True) == A, 0, A)
        assert (A.max(axis=1, keepdims=True) >= others / (1 - chain.rho) - 1e-12).all()


def test_chains_are_made_to_measure() -> None:
    chain = chain_of(0.4, 0.8, 10, 2)
    assert (chain.tau, chain.rho) == (pytest.approx(0.4), pytest.approx(0.8))
    assert chain.condition_1.all()
    chain = output_chain_of(0.5, 0.4, 10, 2)
    assert (chain.tau_o, chain.rho_o) == (pytest.approx(0.5), pytest.approx(0.4))


@pytest.mark.parametrize("patterns", range(3, 13))
def test_a_violating_chain_violates_condition_1_for_every_start_or_is_refused(patterns: int) -> None:
    if patterns < 5:
        with pytest.raises(ValueError, match="give patterns >= 5"):
            violating_chain(patterns)
    else:
        assert not violating_chain(patterns).condition_1.any()


def test_testing_patterns_are_orthonormal_with_the_sum_asked_for() -> None:
    coefficients = orthonormal_combinations(np.random.default_rng(0), 20, 10, 1.2)
    assert np.allclose(coefficients @ coefficients.T, np.eye(10))
    assert np.allclose(coefficients.sum(axis=1), 1.2)


def test_a_training_batch_is_what_it_says() -> None:
    batch = a_batch()
    assert batch.live.sum(-1).tolist()[0] == [2 * 5 + query_step for query_step in batch.query_step[0].tolist()]
    first = batch.step[: 2 * 8] == 0
    shared = (batch.x[..., :8] == batch.x[..., :1]).sum(-1)
    assert (shared[1] == 8).all() and first[:8].all()
    query_y = batch.y[..., -1]  # after the query's first step: a column when the second step is to be predicted
    at_second_step = batch.query_step == 1
    assert (query_y[at_second_step] == batch.query[at_second_step]).all()
    same = (batch.x == batch.query[..., None]) & (batch.step == batch.query_step[..., None]) & batch.live
    assert (batch.y[same] == batch.target[..., None].expand_as(batch.y)[same]).all()
    assert query_y.shape == batch.query_step.shape


def test_the_table_of_logits_is_the_plain_model_and_its_gradient_autograds() -> None:
    models, batch = some_models(), a_batch()
    tokens, query_columns = columns(batch, D, M), queries(D, M, K).T
    for run in range(2):
        Q, key = models.Q[run].clone().requires_grad_(), models.K[run].clone().requires_grad_()
        target = torch.nn.functional.one_hot(batch.target[run], D)
        plain = dense_loss(
            Q, key, tokens[run], batch.live[run], query_columns[batch.query_step[run] * M + batch.query[run]], target
        )
        dQ, dK = torch.autograd.grad(plain, (Q, key))
        value, ours_Q, ours_K = gradient(models, batch, D, M)
        assert torch.allclose(value[run], plain, atol=1e-5)
        assert torch.allclose(loss(models, batch, D, M)[run], plain, atol=1e-5)
        assert torch.allclose(ours_Q[run], dQ, atol=1e-4) and torch.allclose(ours_K[run], dK, atol=1e-4)


def test_training_in_two_parts_ends_to_the_bit_where_training_in_one_does() -> None:
    setting = Setting(torch.tensor([0.5, 1.0]), torch.tensor([6, 6]), D, M, K, batch=20)

    def trained(*parts: tuple[int, int]) -> Models:
        models = Models.start(setting)
        for begin, end in parts:
            models = train(models, setting, training_steps(0, M), lambda s: s, begin, end, lambda *_: None)
        return models

    uninterrupted, parts = trained((0, 12)), trained((0, 5), (5, 12))
    assert torch.equal(uninterrupted.Q, parts.Q) and torch.equal(uninterrupted.K, parts.K)
    assert attention(uninterrupted, a_batch(), D, M).sum(-1).allclose(torch.ones(2, 16))


@pytest.mark.parametrize("logit_scale", [1.0, 200.0])
def test_errors_of_all_lengths_are_those_of_shorter_prompts(logit_scale: float) -> None:
    """Where logits differ by hundreds, a short prefix may have none near the largest of the whole prompt."""
    patterns = torch.eye(D)[:4]
    chain = chain_of(0.5, 0.6, 4, K)
    prompts = draw_prompts(torch.Generator().manual_seed(0), chain, patterns, 0.7, 12, 200, 0.1)
    product = logit_scale * (some_models(1).product[0] / 20 + 2 * torch.eye(2 * D))
    for errors in (cot_errors, icl_errors):
        all_lengths = errors(product, prompts, chain, patterns, M, [3, 7, 12])
        for i, length in enumerate((3, 7, 12)):
            short = type(prompts)(prompts.noisy[:, :length], prompts.states[:, :length], prompts.query)
            assert errors(product, short, chain, patterns, M, [length])[0] == all_lengths[i]


def test_errors_of_lengths_out_of_order_are_refused() -> None:
    patterns = torch.eye(M, D)
    chain = chain_of(0.4, 0.5, M, K)
    prompts = draw_prompts(torch.Generator().manual_seed(3), chain, patterns, 0.5, 12, 20, 0.2)
    for errors in (cot_errors, icl_errors):
        with pytest.raises(ValueError, match="lengths must be positive and increase"):
            errors(torch.eye(2 * D), prompts, chain, patterns, M, [12, 3, 7])


@pytest.mark.parametrize(("length", "diagonal"), [(9, 2.0), (9, 0.0), (1, 0.0), (1, 300.0), (9, 300.0)])
def test_cot_by_running_sums_is_cot_done_step_by_step(length: int, diagonal: float) -> None:
    """Where attention is nearly even, the columns of the query's own earlier steps decide some answers."""
    patterns, chain = torch.eye(D)[:4], chain_of(0.5, 0.6, 4, K)
    prompts = draw_prompts(torch.Generator().manual_seed(2), chain, patterns, 0.7, length, 60, 0.1)
    product = some_models(1).product[0] / 20 + diagonal * torch.eye(2 * D)
    codes, wrong = torch.eye(2 * D)[M : M + K], 0
    for i in range(60):
        tokens = [
            torch.cat([prompts.noisy[i, j, k], prompts.noisy[i, j, k + 1]]) + codes[k]
            for j in range(length)
            for k in range(K)
        ]
        state = patterns[prompts.query[i]]
        for k in range(K):
            query = torch.cat([state, torch.zeros(D)]) + codes[k]
            weights = (torch.stack(tokens) @ product @ query).softmax(0)
            output = weights @ torch.stack(tokens)[:, D:]
            following = patterns[(output @ patterns.T).argmax()]
            tokens.append(torch.cat([state, following]) + codes[k])
            state = following
        wrong += int(state.argmax()) != chain.correct[prompts.query[i], -1]
    assert cot_errors(product, prompts, chain, patterns, M, [length])[0] == pytest.approx(wrong / 60)


def test_shares_of_attention_are_those_of_the_columns_where_attention_is_even_and_add_up_to_1() -> None:
    patterns, chain = torch.eye(D)[:4], chain_of(0.5, 0.6, 4, K)
    prompts = draw_prompts(torch.Generator().manual_seed(4), chain, patterns, 0.7, 9, 60, 0.1)
    same = float((prompts.states[:, :, 0] == prompts.query[:, None]).float().mean())
    even = attention_shares(torch.zeros(2 * D, 2 * D), prompts, patterns, M)
    assert list(even.values()) == pytest.approx([same / K, (1 - same) / K, 1 - 1 / K])
    shares = attention_shares(some_models(1).product[0] / 20, prompts, patterns, M)
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0.05


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"alpha": 0.0}, r"alpha is a fraction of the examples, in \(0, 1\], not 0"),
        ({"test_alpha": 1.5}, r"test_alpha is a fraction of the examples, in \(0, 1\], not 1.5"),
        (
            {"transitions": [[[0.5, 0.6], [0.1, 0.9]]]},
            "row 0 of transition matrix 1 is no distribution: it sums to 1.1",
        ),
        ({"d": 20}, "d=20 is smaller than the 20 patterns and 2 position codes"),
        ({"lengths": [5, 2, 10]}, r"lengths must be positive and increase, unlike \[5, 2, 10\]"),
        ({"lengths": [2, 2]}, r"lengths must be positive and increase, unlike \[2, 2\]"),
        ({"lengths": [0, 2]}, r"lengths must be positive and increase, unlike \[0, 2\]"),
        ({"lengths": []}, "lengths"),
        ({"rate_alphas": (1.5, 2.0)}, r"rate_alphas is a fraction of the examples, in \(0, 1\], not 1.5"),
        ({"tau": 1.2}, "tau\n  Input should be less than or equal to 1"),
        ({"rho": -0.1}, "rho\n  Input should be greater than or equal to 0"),
        ({"tau_o": 0.05}, "no row has largest entry 0.224 and rho=0.75 over 10 patterns: give more patterns"),
        ({"models": 0}, "models\n  Input should be greater than 0"),
        ({"patterns": 25}, "25 orthonormal patterns with coefficient sum 1 do not fit the span of 20"),
        ({"patterns": 2}, "patterns\n  Input should be greater than or equal to 3"),
        ({"patterns": 7}, "study required: at its tau=0.2, no row has largest entry 0.447 and rho=0.8 over 7 patterns"),
        ({"rho": 0.9}, "study required: at its tau=0.2, no row"),
        ({"rho_o": 0.3}, "study tau_o: at its tau_o=0.6, found no step matrices"),
        ({"steps": 1}, "study condition: its chain has 2 steps, more than the models learn: steps=1"),
        ({"transitions": [[[1.0]]]}, "a transition matrix of one state has no wrong step: give at least two states"),
        ({"transitions": [np.eye(25).tolist()] * 2}, "study matrices: 25 orthonormal patterns .* do not fit"),
        (
            {"patterns": 4, "tau": 0.7, "rho": 0.7, "tau_o": 0.6, "studies": ["condition"]},
            "study condition: no chain over 4 patterns violates Condition 1 .* give patterns >= 5",
        ),
        ({"rate_patterns": (1, 2)}, "rate_patterns.0\n  Input should be greater than or equal to 2"),
        ({"scaling_iterations": 9}, "scaling_iterations\n  Input should be greater than or equal to 10"),
    ],
)
def test_bad_input_says_what_to_change(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        JOB.Config.model_validate(bad)


def test_only_the_chosen_studies_have_to_fit() -> None:
    assert JOB.Config.model_validate({"rho": 0.9, "studies": ["attention", "rho"]}).rho == 0.9


@pytest.mark.slow(10)
def test_the_smoke_run_holds_its_golden_numbers(tmp_path: Path) -> None:
    chosen = ("attention", "condition", "matrices")  # the studies that claim something
    result = JOB.execute(SMOKE | {"studies": chosen}, tmp_path)
    assert len(result["checks"]) >= 5
    assert all(check["holds"] for check in result["checks"]), [c for c in result["checks"] if not c["holds"]]
    assert (tmp_path / "figures" / "page.html").exists()


def test_steps_grow_in_proportion_to_the_patterns_and_slower_than_the_cube_of_a_tasks_steps(tmp_path: Path) -> None:
    fewer = {
        "rate_models": 2,
        "batch": 60,
        "rate_patterns": (4, 6, 9),
        "rate_steps": (1, 2, 3),
        "scaling_iterations": 150,
    }
    result = JOB.execute({**SMOKE, **fewer, "M": 8, "patterns": 8, "studies": ["scaling"]}, tmp_path)
    fits = result["studies"]["scaling"]["fits"]
    assert fits["M"]["slope"]["mean"] == pytest.approx(1, abs=0.15)
    assert fits["K"]["slope"]["high"] < 1 and fits["K"]["needed"]["mean"][0] > 10
