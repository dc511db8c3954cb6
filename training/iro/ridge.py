"""The ridge regression of alignment jobs. Held-out prompts choose how much it shrinks; then they are training data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

from training.iro.config import BLOCK_PRIORS, block_scales
from value_heads import FeatureSpec, Rows, fit_ridge
from value_heads.fit import HeadFit, Moments
from value_heads.heads import LinearHead

MEAN_SCALES = (3.0, 1.0, 10.0)  # of the states' means, the first of equally good ones
TEXT_SCALES = (1.0, 3.0, 0.1)  # of functions of the text


class Ridge(NamedTuple):
    """``head``: of all prompts, ``judged``: of those not held out. ``alpha``: the penalty."""

    head: LinearHead
    judged: LinearHead
    alpha: float


def fit_values(spec: FeatureSpec, train: Iterable[Rows], heldout: Iterable[Rows]) -> Ridge:
    """V(prefix of a response) from differences within prompts. The means of states that tell little apart are shrunk
    more, those that tell much less, and then functions of the text: held-out correlation chooses the scale of each
    together with the penalty."""
    moments, judge = Moments(train, within=True), Moments(heldout, within=True)

    def fitted(data: Moments, mean_scale: float, text_scale: float) -> partial[HeadFit]:
        scales = block_scales(spec, mean_scale, text_scale)
        return partial(fit_ridge, spec, data, within=True, block_scales=scales, block_priors=BLOCK_PRIORS)

    fits: dict[tuple[float, float], HeadFit] = {}

    def best_of(mean_scales: Sequence[float], text_scales: Sequence[float]) -> tuple[float, float]:
        for scales in product(mean_scales, text_scales):
            if scales not in fits:
                fits[scales] = fitted(moments, *scales)(judge)
        return max(fits, key=lambda scales: fits[scales].best_score)

    best = best_of(MEAN_SCALES if spec.averaged else MEAN_SCALES[:1], TEXT_SCALES[:1])
    if spec.text_counts:
        best = best_of(best[:1], TEXT_SCALES)
    chosen = fits[best]
    refit = fitted(moments + judge, *best)(alphas=[chosen.chosen])
    assert isinstance(refit.head, LinearHead) and isinstance(chosen.head, LinearHead)
    return Ridge(refit.head, chosen.head, chosen.chosen)
