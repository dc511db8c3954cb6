"""How alignment jobs fit ridge values."""

from __future__ import annotations

import pytest
import torch

from training.iro.config import BLOCK_PRIORS, block_scales
from training.iro.ridge import MEAN_SCALES, fit_values
from value_heads import FeatureSpec, Rows, fit_ridge
from value_heads.fit import Moments

WIDTH, COUNTED = 40, tuple(range(60))
SPEC = FeatureSpec(averaged=(3,), counted=COUNTED, position=False)


def rows(prompts: int, seed: int, of_state: float, of_counts: float) -> Rows:
    """Eight responses to each prompt. The reward is a sum over the state and one over the counts, with noise."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.Generator().manual_seed(99)
    state_weight, count_weight = torch.randn(WIDTH, generator=truth), torch.randn(len(COUNTED), generator=truth)
    state = torch.randn(8 * prompts, WIDTH, generator=generator)
    counts = torch.randint(0, 2, (8 * prompts, len(COUNTED)), generator=generator).float()
    noise = 3 * torch.randn(8 * prompts, generator=generator)
    targets = of_state * state @ state_weight + of_counts * counts @ count_weight + noise
    features = torch.cat([state, counts], 1)
    return Rows(features, targets, torch.ones(8 * prompts), torch.arange(prompts).repeat_interleave(8))


@pytest.mark.parametrize(("of_state", "of_counts", "scale"), [(1.0, 0.0, 10.0), (0.0, 1.0, 1.0)])
def test_held_out_prompts_choose_how_much_the_means_of_states_are_shrunk(
    of_state: float, of_counts: float, scale: float
) -> None:
    train, heldout = rows(6, 1, of_state, of_counts), rows(12, 2, of_state, of_counts)
    fitted = fit_values(SPEC, [train], [heldout])
    by_scale = {
        mean_scale: fit_ridge(
            SPEC,
            [train],
            [heldout],
            within=True,
            block_scales=block_scales(SPEC, mean_scale),
            block_priors=BLOCK_PRIORS,
        )
        for mean_scale in MEAN_SCALES
    }
    assert max(by_scale, key=lambda mean_scale: by_scale[mean_scale].best_score) == scale
    torch.testing.assert_close(fitted.judged.weight, by_scale[scale].head.weight)
    assert fitted.alpha == by_scale[scale].chosen
    refit = fit_ridge(
        SPEC,
        [train, heldout],
        alphas=[fitted.alpha],
        within=True,
        block_scales=block_scales(SPEC, scale),
        block_priors=BLOCK_PRIORS,
    )
    torch.testing.assert_close(fitted.head.weight, refit.head.weight, atol=1e-5, rtol=1e-4)
    test = Moments([rows(50, 3, of_state, of_counts)], within=True)
    assert test.correlation(fitted.head.weight.double()) > test.correlation(fitted.judged.weight.double())
