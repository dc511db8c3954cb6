from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.training.iro.test_diagnostics import PROMPTS, Drawn, draws
from training.iro.config import AlignConfig
from training.iro.data import Prompt
from training.iro.learners import BetterLearner, HeadLearner, Learned, LoraLearner
from value_heads import Example, FeatureSpec, LoraValues


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


def test_held_out_draws_of_each_policy_choose_the_epoch_of_a_lora_fit_apart(
    config: AlignConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    heldout_examples: list[Example] = []

    class Stopped(Exception):
        pass

    def fit_lora(backbone: object, train: Sequence[Example], heldout: Sequence[Example], **_: object) -> None:
        heldout_examples.extend(heldout)
        raise Stopped

    monkeypatch.setattr("training.iro.learners.fit_lora", fit_lora)
    monkeypatch.setattr("training.iro.learners.LoraBackbone", lambda *_: None)
    prompts = {index: Prompt(index, (index,), {}) for index in range(PROMPTS)}
    shards = Drawn([draws(0, 0.0), draws(1, 3.0)])
    shards.source = cast(Any, SimpleNamespace(stop_if_asked=None))
    with pytest.raises(Stopped):
        LoraLearner(config, 3, prompts).fit(None, shards, shards, 0)
    policies = {example.group: set[tuple[int, int]]() for example in heldout_examples}
    for example in heldout_examples:
        policies[example.group].add((example.prompt_ids[0], example.completion_ids[0]))
    assert len(policies) == 2 * PROMPTS and all(len(pairs) == 1 for pairs in policies.values())
