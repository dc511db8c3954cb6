"""Metrics of value functions against their definitions."""

import numpy as np
import pytest

from value_heads.metrics import calibration, r2_by_position, within_prompt


def test_within_prompt_correlation_ignores_what_prompts_differ_by():
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(200), 8)
    offset = 10 * rng.normal(size=200)[prompts]
    signal, noise = rng.normal(size=1600), rng.normal(size=1600)
    rewards = offset + signal
    values = np.stack([offset, signal - 5 * offset, 0.6 * signal + 0.8 * noise, -signal], axis=1)
    values[:, 0] += 1e-3 * noise
    got = within_prompt(values, rewards, prompts, np.full(1600, 4)).correlation_T
    np.testing.assert_allclose(got, [0, 1, 0.6, -1], atol=0.06)


def test_positions_count_only_rollouts_that_reach_them():
    values = np.array([[1.0, 9.0], [2.0, -9.0], [3.0, 1.0], [4.0, 2.0]])
    rewards, prompts = np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4)
    assert within_prompt(values, rewards, prompts, [1, 1, 2, 2]).correlation_T == pytest.approx([1, 1])
    assert np.isnan(within_prompt(values, rewards, prompts, [1, 1, 1, 2]).correlation_T[1])
    r2 = r2_by_position(values, rewards, [1, 1, 2, 2])
    assert r2[0] == pytest.approx(1)
    assert r2[1] == pytest.approx(1 - (2**2 + 2**2) / 0.5)


def test_tokens_that_all_rollouts_share_count_as_no_correlation_overall():
    """Equal prefixes have equal values while their rewards differ."""
    rewards, prompts, lengths = np.array([1.0, 2.0, 5.0, 3.0]), np.array([0, 0, 1, 1]), np.full(4, 4)
    last_token_alone = np.stack([np.zeros(4), np.zeros(4), np.zeros(4), rewards], axis=1)
    twins = within_prompt(last_token_alone, rewards, prompts, lengths)
    assert twins.correlation_T[3] == pytest.approx(1) and np.isnan(twins.correlation_T[:3]).all()
    assert twins.correlation == pytest.approx(1 / np.sqrt(4))  # r·r once over the root of (r·r)(4 r·r)
    assert twins.variance_share_T.tolist() == [0, 0, 0, 1]
    every_token = within_prompt(np.stack([rewards] * 4, axis=1), rewards, prompts, lengths)
    assert every_token.correlation == pytest.approx(1)
    assert every_token.variance_share_T == pytest.approx([0.25] * 4)


def test_calibration_bins_by_value():
    table = calibration([3, 0, 1, 2], [30, 0, 10, 20], bins=2)
    assert [(b.count, b.predicted, b.realised) for b in table] == [(2, 0.5, 5.0), (2, 2.5, 25.0)]
