"""What value functions should read of the frozen model's states."""

from __future__ import annotations

import pytest
import torch

from benchmarks.value_features import correlations, feature_sets, judged, mean_layers, summary
from iro_server import JsonObject
from iro_server.decoding.base import Final
from training.iro.fit import Scale
from training.iro.simple_loop import Rollout
from value_heads import FeatureSpec
from value_heads.text_counts import pack

PROMPTS, SAMPLES, TOKENS, WIDTH = 24, 8, 12, 6
COMMON: JsonObject = {"counted": (1, 2), "stop_ids": (0,), "horizon": TOKENS}


def rollouts(first: int, count: int) -> list[Rollout]:
    """The reward is the mean over a response of the states' first coordinate in layer 1, and prompts differ more than
    their samples do; layer 2 tells nothing."""
    generator = torch.Generator().manual_seed(first)

    def rollout(prompt: int, level: float) -> Rollout:
        telling_LD, other_LD = (torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(2))
        telling_LD[:, 0] += torch.randn((), generator=generator)  # of the whole response
        tokens = torch.randint(1, 5, (TOKENS,), generator=generator).tolist()
        hidden = {1: telling_LD, 2: other_LD}
        return Rollout(prompt, Final(tokens, [], 0.0, "length", hidden), level + float(telling_LD[:, 0].mean()))

    levels = 10 * torch.randn(count, generator=generator)
    return [rollout(first + i, float(level)) for i, level in enumerate(levels) for _ in range(SAMPLES)]


@pytest.mark.parametrize(("layer", "low", "high"), [(1, 0.9, 1.0), (2, -0.3, 0.3)])
def test_the_layer_that_tells_the_reward_correlates_with_it_on_unseen_prompts(
    layer: int, low: float, high: float
) -> None:
    train, test = rollouts(0, PROMPTS), rollouts(PROMPTS, 12)
    correlation, rewards = judged(COMMON | {"averaged": (layer,)}, train, test, Scale(0.0, 1.0))
    assert low < correlation < high
    best = [max(test[i].reward for i in range(start, start + SAMPLES)) for start in range(0, len(test), SAMPLES)]
    gaps = [most - reward for most, reward in zip(best, rewards, strict=True)]
    assert min(gaps) >= 0 and (max(gaps) < 0.3) == (layer == 1)


def test_feature_sets_are_specs_that_differ() -> None:
    specs = [FeatureSpec.model_validate(COMMON | fields) for fields in feature_sets(30, pack(["a"])).values()]
    assert len({spec.blocks for spec in specs}) == len(specs) == 5 + len(mean_layers(30))
    assert mean_layers(30) == [10, 15, 20, 25, 30]


def test_the_table_has_a_column_for_each_task() -> None:
    rows = [
        {"task": task, "seed": seed, "correlations": {"a": 0.25 + 0.5 * seed}, "picks": {"a": [0.0, 1.0]}}
        for task in ("keywords", "sentiment")
        for seed in (0, 1)
    ]
    content = {"tasks": summary(rows)}
    assert [cell["correlations"]["a"]["mean"] for cell in content["tasks"]] == [0.5, 0.5]
    assert "keywords | sentiment" in correlations(content) and "0.50" in correlations(content)
