"""How alignment jobs fit ridge values."""

from __future__ import annotations

import pytest
import torch

from training.iro.config import BLOCK_PRIORS, block_scales
from training.iro.ridge import MEAN_SCALES, TEXT_SCALES, fit_values
from value_heads import FeatureSpec, LinearHead, Rows, features, fit_ridge
from value_heads.features import TOKENS
from value_heads.fit import HeadFit, Moments
from value_heads.text_counts import pack

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


PIECES = ["Ġword", ".", "Ġlonger", "Ċ"]


def responses(prompts: int, seed: int, reads_text: bool) -> Rows:
    """Eight responses of 12 tokens to each prompt. The reward is nearness of a sentence's words to three, or a function
    of the state."""
    generator = torch.Generator().manual_seed(seed)
    count = 8 * prompts
    tokens = torch.randint(0, len(PIECES), (count, 12), generator=generator)
    state = torch.randn(count, 12, WIDTH, generator=generator)
    words, sentences = torch.isin(tokens, torch.tensor([0, 2])).sum(1), (tokens == 1).sum(1).clamp_min(1)
    by_text, by_state = -(words / sentences - 3).abs(), state.mean(1)[:, :8].sum(1)
    spec = TEXT if reads_text else TEXT.model_copy(update={"text_counts": ""})
    read = features(spec, {3: state, TOKENS: tokens})[:, -1]
    return Rows(read, 0.5 * by_state + by_text, torch.ones(count), torch.arange(prompts).repeat_interleave(8))


TEXT = FeatureSpec(averaged=(3,), text_counts=pack(PIECES), position=False)


def test_values_that_read_text_learn_what_is_not_linear_in_counts_of_tokens() -> None:
    correlations = {}
    for reads_text in (False, True):
        spec = TEXT if reads_text else TEXT.model_copy(update={"text_counts": ""})
        head = fit_values(spec, [responses(16, 1, reads_text)], [responses(16, 2, reads_text)]).judged
        correlations[reads_text] = Moments([responses(50, 3, reads_text)], within=True).correlation(
            head.weight.double()
        )
    assert correlations[True] > 0.9 > 0.5 > correlations[False]


def test_held_out_prompts_choose_how_much_functions_of_the_text_are_shrunk() -> None:
    """After the scale of the states' means, which is chosen at the first of the texts'."""
    train, heldout = responses(16, 1, True), responses(16, 2, True)
    fitted = fit_values(TEXT, [train], [heldout])

    def at(mean_scale: float, text_scale: float) -> HeadFit:
        scales = block_scales(TEXT, mean_scale, text_scale)
        return fit_ridge(TEXT, [train], [heldout], within=True, block_scales=scales, block_priors=BLOCK_PRIORS)

    mean_scale = max(MEAN_SCALES, key=lambda scale: at(scale, TEXT_SCALES[0]).best_score)
    best = max((at(mean_scale, scale) for scale in TEXT_SCALES), key=lambda fit: fit.best_score)
    assert isinstance(best.head, LinearHead)
    torch.testing.assert_close(fitted.judged.weight, best.head.weight)
