"""The ridge regression of a static tilt."""

from __future__ import annotations

import pytest
import torch

from value_heads.bias_fit import FOLDS, PENALTIES, fit_bias

PROMPTS, SAMPLES, VOCABULARY = 4 * FOLDS, 8, 40


def rollouts(noise: float):
    """The reward of a completion is how often it holds token 7, less token 3, and noise."""
    generator = torch.Generator().manual_seed(0)
    completions = [torch.randint(VOCABULARY, (12,), generator=generator).tolist() for _ in range(PROMPTS * SAMPLES)]
    counts_R = torch.tensor([float(tokens.count(7) - tokens.count(3)) for tokens in completions])
    return completions, counts_R + noise * torch.randn(len(completions), generator=generator)


def fitted(completions, prompts_R, rewards_R):
    return fit_bias(completions, prompts_R, rewards_R, torch.zeros(VOCABULARY, 0))


def test_the_bias_does_not_depend_on_which_prompts_come_first() -> None:
    """All of them choose how much is shrunk, not every fourth alone, whose rewards mislead here."""
    completions, rewards_R = rollouts(noise=0.0)
    prompts_R = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    rewards_R = torch.where(prompts_R % FOLDS == 0, -rewards_R, rewards_R)
    biases = [fitted(completions, (prompts_R + first) % PROMPTS, rewards_R) for first in range(FOLDS)]
    for bias_V in biases[1:]:
        torch.testing.assert_close(bias_V, biases[0])


def test_what_is_mostly_noise_is_shrunk_more() -> None:
    prompts_R = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    weights = [float(fitted(completions, prompts_R, rewards_R)[7]) for completions, rewards_R in map(rollouts, (0, 5))]
    assert weights[0] > 2 * weights[1] > 0


def test_rollouts_of_a_single_prompt_are_shrunk_most() -> None:
    completions, rewards_R = rollouts(noise=0.0)
    single = fitted(completions, torch.zeros(len(completions), dtype=torch.int64), rewards_R)
    several = fitted(completions, torch.arange(PROMPTS).repeat_interleave(SAMPLES), rewards_R)
    assert 0 < single[7] < several[7] and PENALTIES[-1] == max(PENALTIES)


def test_prompts_that_were_left_out_choose_how_much_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that a fit has read, the least shrunk predictions would be the best, though noise is most of them."""
    completions, rewards_R = rollouts(noise=5.0)
    prompts_R = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    chosen = fitted(completions, prompts_R, rewards_R)
    monkeypatch.setattr("value_heads.bias_fit.PENALTIES", PENALTIES[-1:])
    torch.testing.assert_close(chosen, fitted(completions, prompts_R, rewards_R))


def test_an_unshrunk_bias_is_what_each_token_adds_to_the_reward_in_its_deviations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("value_heads.bias_fit.PENALTIES", (1e-3,))
    completions, rewards_R = rollouts(noise=0.0)
    prompts_R = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    within_R = rewards_R - rewards_R.view(PROMPTS, SAMPLES).mean(1).repeat_interleave(SAMPLES)
    expected = torch.zeros(VOCABULARY)
    expected[7], expected[3] = 1 / within_R.std(), -1 / within_R.std()
    for unit in (1.0, 10.0):
        torch.testing.assert_close(fitted(completions, prompts_R, unit * rewards_R), expected, atol=1e-3, rtol=1e-3)


def test_the_bias_does_not_depend_on_a_large_number_added_to_every_reward() -> None:
    completions, rewards_R = rollouts(noise=0.0)
    prompts_R = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
    expected = fitted(completions, prompts_R, rewards_R)
    torch.testing.assert_close(fitted(completions, prompts_R, rewards_R.double() + 1e9), expected)
