"""A value function is judged beside earlier ones that have not seen its held-out prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.iro.toy_job import job
from training.iro.config import AlignConfig
from training.iro.data import Slice
from training.iro.validation import Validation
from training.run import Run
from value_heads import ValueStack, load_bundle


@pytest.mark.parametrize("prompts", [None, 20])
def test_iterations_that_hold_out_the_same_prompts_are_judged_on_fits_without_them(
    config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: int | None
) -> None:
    """Where slices are disjoint, an earlier value function may have read its own held-out prompts."""
    trials: list[ValueStack] = []

    def choose(self: Validation, step: int, part: Slice, judged: ValueStack, *_: object) -> tuple[float, list[str]]:
        trials.append(judged)
        return 2.0 / step, []

    monkeypatch.setattr(Validation, "choose_beta", choose)
    job().execute(config.model_copy(update={"prompts_per_iteration": prompts}), tmp_path / "run")
    first, second = (trial.heads for trial in trials)
    served, later = (
        load_bundle(tmp_path / f"run/iterations/{step}", model_hash="toy-hash", template_hash="toy-template")
        for step in (1, 2)
    )
    assert isinstance(served, ValueStack) and isinstance(later, ValueStack)
    assert not torch.equal(first[0].weight, served.heads[0].weight)
    assert torch.equal(second[0].weight, (first if prompts else served.heads)[0].weight)
    assert torch.equal(later.heads[0].weight, served.heads[0].weight)
    assert not torch.equal(later.heads[1].weight, second[1].weight)
    assert list(trials[1].betas) == [2.0, 1.0] and list(later.betas) == [2.0, 1.0]
    assert Run(tmp_path / "run", seed=0).load("2-fit")["overall"]["stack_correlation"] > 0
