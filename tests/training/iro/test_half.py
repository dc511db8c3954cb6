"""Hidden states larger than float16 holds: stored, fitted and steered by; states that are no number are an error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iro_server.engines.base import Chunk
from tests.toy import ToySession
from tests.training.iro.toy_job import Toy, job
from training.iro.config import AlignConfig
from training.iro.data import AlignError
from training.iro.half import Half
from value_heads import FeatureSpec, LinearHead, Rows, fit_ridge, load_bundle
from value_heads.fit import HeadFit

MASSIVE = torch.tensor([2e5, 1.0, 3.0, 0.01])  # beyond float16's 65,504, beside small ones


class Scaled(Toy):
    """The toy model with hidden states multiplied by ``factors``."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = factors

    async def open(self, *args: Any, **kwargs: Any) -> Any:
        return ScaledSession(await super().open(*args, **kwargs), self.factors)


class ScaledSession:
    cached_tokens = 0

    def __init__(self, session: ToySession, factors: Tensor) -> None:
        self.session, self.factors = session, factors

    async def extend(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> Chunk:
        chunk = await self.session.extend(parents, num_successors, length)
        chunk.hidden.update({layer: states * self.factors for layer, states in chunk.hidden.items()})
        return chunk

    def close(self) -> None:
        self.session.close()


def test_a_job_learns_from_hidden_states_that_float16_cannot_hold(config: AlignConfig, tmp_path: Path) -> None:
    result = job(Scaled(MASSIVE)).execute(config, tmp_path / "run")
    assert result["checks"][0]["holds"] and result["history"][0]["correlation"] > 0.5
    stack = load_bundle(Path(result["history"][0]["path"]), model_hash="toy-hash", template_hash="toy-template")
    assert isinstance(stack.heads[0], LinearHead) and stack.heads[0].weight.isfinite().all()


def test_hidden_states_that_are_no_numbers_fail_the_job_with_what_to_change(
    config: AlignConfig, tmp_path: Path
) -> None:
    with pytest.raises(AlignError, match=r"layer 0 .* not finite.*feature_spec") as failure:
        job(Scaled(torch.tensor([1.0, math.inf, 1.0, 1.0]))).execute(config, tmp_path / "run")
    assert failure.value.code == "non_finite_features"


def test_a_non_finite_weight_is_an_error() -> None:
    spec = FeatureSpec(current=(0,), position=False)
    batch = Rows(torch.tensor([[1.0], [math.inf]]), torch.tensor([0.0, 1.0]), torch.ones(2), torch.zeros(2).long())
    with pytest.raises(ValueError, match="not finite"):
        fit_ridge(spec, [batch], alphas=[1.0])
    with pytest.raises(ValueError, match="not finite"):
        HeadFit(LinearHead(spec, torch.tensor([math.nan]), 0.0), 1.0, {})


def test_storage_loses_less_than_2_to_the_minus_11_of_each_entry_and_overflows_nowhere() -> None:
    values = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e6, 1.0, 1e-2, 70000.0])
    half = Half.of(values)
    assert half.stored.dtype == torch.float16 and half.stored.isfinite().all()
    normal = values.abs() >= half.scale[:, None] * 2**-14
    assert normal.float().mean() > 0.9
    assert ((half.float() - values).abs()[normal] <= values.abs()[normal] * 2**-11).all()
    small = torch.tensor([[1.5, -2.0, 1000.0], [0.0, 0.0, 0.0]])
    assert Half.of(small).scale.tolist() == [1.0, 1.0] and torch.equal(Half.of(small).float(), small)
    assert Half.of(torch.tensor([math.nan, math.inf, 1e5])).float().isfinite().tolist() == [False, False, True]
    assert Half.of(torch.empty(0, 3)).float().shape == (0, 3)


def test_a_fit_from_half_precision_ranks_as_one_from_float32() -> None:
    """Ridge on massive and small features alike: predictions differ by less than a hundredth of their deviation."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2000, 4, generator=generator) * MASSIVE + MASSIVE  # a mean as large as the deviation
    truth = torch.tensor([1.0, -2.0, 0.5, 1.0]) / MASSIVE
    targets = features @ truth + torch.randn(2000, generator=generator)
    groups = torch.arange(2000) // 8
    exact, rounded = (
        fit_ridge(
            FeatureSpec(current=(0,), position=False),
            [Rows(x, targets, torch.ones(2000), groups)],
            alphas=[1e-3],
            within=True,
        ).head(features)
        for x in (features, Half.of(features).float())
    )
    assert float((exact - rounded).std() / exact.std()) < 0.01
    assert float(torch.corrcoef(torch.stack([exact, rounded]))[0, 1]) > 0.9999
