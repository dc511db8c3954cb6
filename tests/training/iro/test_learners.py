from __future__ import annotations

import math
from typing import Any, cast

import pytest

from training.iro.learners import BetterLearner, HeadLearner, Learned, LoraLearner
from value_heads import FeatureSpec, LoraValues


class Fits:
    """A learner whose value functions rank held-out completions as well as ``correlation`` says."""

    spec = FeatureSpec(current=(0,))

    def __init__(self, kind: type, correlation: float) -> None:
        self.kind, self.correlation = kind, correlation

    def fit(self, before: Any, *_: Any) -> Learned:
        stack = self.kind.__new__(self.kind)
        return Learned(stack, stack, {"overall": {"correlation": self.correlation}, "before": before})


class Heads:
    pass


def better(heads: Fits, lora: Fits) -> BetterLearner:
    return BetterLearner(cast(HeadLearner, heads), cast(LoraLearner, lora))


@pytest.mark.parametrize(
    ("heads", "lora", "chosen"), [(0.3, 0.4, LoraValues), (0.45, 0.2, Heads), (0.45, math.nan, Heads)]
)
def test_what_ranks_held_out_completions_better_is_kept(heads: Any, lora: Any, chosen: type) -> None:
    learner = better(Fits(Heads, heads), Fits(LoraValues, lora))
    stack, _, first = learner.fit(None, *cast(Any, (None, None, 0)))
    assert type(stack) is chosen
    assert first["message"].startswith(f"Value functions are {'lora' if chosen is LoraValues else 'linear'}: ")
    again, _, report = learner.fit(stack, *cast(Any, (None, None, 0)))
    assert type(again) is chosen and report["before"] is stack
    assert learner.spec == Fits.spec
