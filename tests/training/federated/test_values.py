"""Federated least squares of a value function, on rows whose best fit is known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from training.federated import values
from training.federated.values import (
    JOB,
    METHODS,
    FederatedValuesConfig,
    _centred,
    _interval,
    edges,
    federated,
    ridge_fits,
)
from training.intervals import band
from value_heads.features import FeatureSpec
from value_heads.fit import ALPHAS, Rows, fit_ridge

FEATURES, CLIENTS = 5, 4
TRUTH = torch.tensor([1.0, -0.5, 0.25, 0.0, 0.1])


def rows(seed: int, offset: float = 0.0) -> Rows:
    """Six groups of eight rows. Targets are linear in the features, but for an offset of each group's own."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(48, FEATURES, generator=draw)
    groups = torch.arange(6).repeat_interleave(8)
    return Rows(features, features @ TRUTH + offset * groups, torch.ones(48), groups)


def test_a_clients_rows_lose_the_mean_of_their_group_and_get_standard_units() -> None:
    client = _centred(rows(0, offset=3.0), torch.full((FEATURES,), 2.0))
    assert client.features.view(6, 8, FEATURES).mean(1).abs().max() < 1e-6
    assert torch.allclose(client.features * 2 @ TRUTH, client.targets, atol=1e-4)  # the offsets are gone


@pytest.mark.parametrize("rule", ["fadas-divide", "fadas", "fedbuff"])
def test_what_clients_learn_together_is_the_pooled_fit(rule: str) -> None:
    clients = [_centred(rows(seed, offset=seed), torch.ones(FEATURES)) for seed in range(CLIENTS)]
    config = FederatedValuesConfig(clients=CLIENTS, concurrency=3, buffer_size=2, rounds=300, local_steps=5, rule=rule)
    rate = {"fedbuff": 0.5, "fadas": 0.02, "fadas-divide": 0.02}[rule]
    b = federated(config, clients, rate=rate, penalty=0.0, seed=0)
    x, y = torch.cat([client.features for client in clients]), torch.cat([client.targets for client in clients])
    pooled = torch.linalg.lstsq(x, y).solution
    assert torch.allclose(pooled, TRUTH, atol=1e-4)
    assert (b - pooled).norm() < 0.1 * pooled.norm()


def test_clients_that_diverge_are_an_error_that_says_what_to_lower() -> None:
    clients = [_centred(rows(seed), torch.ones(FEATURES)) for seed in range(CLIENTS)]
    config = FederatedValuesConfig(clients=CLIENTS, local_rate=1e30)
    with pytest.raises(ValueError, match=r"fadas-divide with the rate 0\.01 .* not finite; lower local_rate or rates"):
        federated(config, clients, rate=0.01, penalty=0.0, seed=0)


def test_a_client_alone_selects_its_own_penalty_on_the_rows_of_the_pooled_fit() -> None:
    """A client of few, noisy rows needs a larger penalty than the pooled fit."""
    draw = torch.Generator().manual_seed(0)
    width = 40
    spec = FeatureSpec(current=(0,), position=False)
    truth = torch.randn(width, generator=draw)

    def noisy(count: int) -> Rows:
        features = torch.randn(count, width, generator=draw)
        targets = features @ truth + 10 * torch.randn(count, generator=draw)
        return Rows(features, targets, torch.ones(count), torch.arange(count) // 8)

    clients, choosing = [noisy(48), *(noisy(2000) for _ in range(4))], [noisy(2000)]
    pooled, alone = ridge_fits(spec, clients, choosing, {})
    assert pooled.chosen == fit_ridge(spec, clients, choosing, within=True, block_scales={}).chosen
    assert alone[0].chosen == fit_ridge(spec, clients[:1], choosing, within=True, block_scales={}).chosen
    assert alone[0].chosen > pooled.chosen


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rates": []}, "rates"),
        ({"penalties": []}, "penalties"),
        ({"rates": [0.01, math.nan]}, "rates"),
        ({"rates": [0.0]}, "rates"),
        ({"penalties": [-0.1]}, "penalties"),
        ({"local_rate": math.inf}, "local_rate"),
        ({"heldout_prompts": 1001}, "heldout_prompts"),
        (
            {"clients": 1000, "prompts_per_client": 5},
            "clients times prompts_per_client is 5000, above the 4000 prompts",
        ),
    ],
)
def test_configs_that_would_fail_after_the_rollouts_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        FederatedValuesConfig.model_validate(fields)


def test_runs_with_other_seeds_share_no_repetition() -> None:
    seeds = [FederatedValuesConfig(seed=seed, seeds=1000).repetition_seeds for seed in range(3)]
    assert len(set().union(*seeds)) == 3000
    assert [*FederatedValuesConfig().repetition_seeds] == [0, 1, 2, 3, 4]


def test_choices_at_an_end_of_their_grid_are_marked() -> None:
    chosen = {"rate": 0.03, "penalty": 0.1, "pooled": ALPHAS[3], "alone": [ALPHAS[0], ALPHAS[1], ALPHAS[-1]]}
    assert edges(chosen, {"rate": (0.003, 0.01, 0.03), "penalty": (0.1,)}) == {
        "rate": [True],
        "penalty": [False],
        "pooled": [False],
        "alone": [True, False, True],
    }


def test_an_interval_counts_how_seeds_differ_and_not_only_prompts() -> None:
    rng = np.random.default_rng(0)
    alike = np.repeat([[0.0, 1.0]], 6, axis=0).repeat(50, axis=1)
    differing = np.repeat([[0.0], [1.0]], 3, axis=0) * np.ones((1, 100))
    widths = [np.diff(_interval(table, rng)["interval"])[0] for table in (alike, differing)]
    assert _interval(alike, rng)["mean"] == _interval(differing, rng)["mean"] == 0.5
    assert widths[1] > 4 * widths[0]


def test_an_interval_of_few_seeds_that_differ_is_students() -> None:
    differing = np.repeat([[0.0], [0.5], [1.0]], 32, axis=1)
    student = band([0.0, 0.5, 1.0])
    assert _interval(differing, np.random.default_rng(0))["interval"] == pytest.approx(
        [student["low"], student["high"]]
    )


def test_the_figure_has_the_intervals_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = {name: [[float(i + seed), 2.0 * i] for seed in range(3)] for i, name in enumerate(METHODS)}
    seeds = [{"rewards": {name: rows[seed] for name, rows in rewards.items()}} for seed in range(3)]
    (tmp_path / "result.json").write_text(json.dumps({"per_seed": seeds}))
    figure_rewards: list[Any] = []
    monkeypatch.setattr(values, "draw_rewards", lambda content, path: figure_rewards.append(content["rewards"]))
    values.draw(tmp_path)
    assert figure_rewards == [{name: band(np.mean(rows, axis=1)) for name, rows in rewards.items()}]


@pytest.mark.slow
def test_the_whole_way_on_the_real_model_to_decoding(tmp_path: Path) -> None:
    result = JOB.execute(JOB.presets["smoke"], tmp_path)
    assert all(check["holds"] for check in result["checks"])
    rewards = result["per_seed"][0]["rewards"]
    assert {name: len(group) for name, group in rewards.items()} == dict.fromkeys(
        ("base", "best-of-16", "federated", "pooled"), 2
    )
    assert all(best > mean for best, mean in zip(rewards["best-of-16"], rewards["base"], strict=True))
    assert result["per_seed"][0]["at_edge"].keys() == {"rate", "penalty", "pooled", "alone"}
    assert (tmp_path / "figures" / "rewards.png").exists()
