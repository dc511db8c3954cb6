"""The ridge regression of a static tilt."""

from __future__ import annotations

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
