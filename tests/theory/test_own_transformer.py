"""An own transformer in the laboratories: it learns, resumes to the bit, and the README's example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from theory.own_transformer import cot_job, icl_job
from training.run import Cancelled

ICL = {"M1": 4, "M2": 6, "d": 12, "d_y": 4, "odr": 2, "tasks": 4, "length": 8, "prompts": 200, "deep_models": 2}
ICL |= {"deep_iterations": 120, "deep_batch": 16, "deep_rate": 3e-3}
COT = {"d": 10, "M": 6, "patterns": 6, "deep_length": 4, "deep_models": 2, "deep_batch": 16, "deep_iterations": 101}

README = Path(__file__).parents[2] / "theory/README.md"


class MeanOfColumns(nn.Module):
    """A linear map of the mean of live columns and the last column, with dropout."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(2 * inputs, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, outputs))

    def forward(self, tokens: Tensor, live: Tensor) -> Tensor:
        weights = live[..., None].float()
        mean = (tokens * weights).sum(1) / weights.sum(1)
        return self.map(torch.cat([mean, tokens[:, -1]], dim=-1))


@pytest.mark.slow(13)
def test_the_readmes_transformer_learns_beside_three_layers(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[0], names)
    result = names["JOB"].execute(ICL | {"deep_iterations": 300}, tmp_path)
    losses = result["own"]["curves"]["loss"]["mean"]
    assert losses[-1] < 0.7 * losses[0]
    assert result["own"]["places"].keys() == result["three_layers"]["places"].keys()


@pytest.mark.slow(7)
@pytest.mark.parametrize(("make", "config"), [(icl_job, ICL), (cot_job, COT)])
def test_an_interrupted_run_goes_on_to_the_same_bits(make, config, tmp_path: Path) -> None:
    job = make("tests.own", MeanOfColumns)
    uninterrupted = job.execute(config, tmp_path / "uninterrupted")
    stop = iter([False] * 4 + [True])
    with pytest.raises(Cancelled):
        job.execute(config, tmp_path / "cut", should_stop=lambda: next(stop))
    assert job.execute(config, tmp_path / "cut")["own"] == uninterrupted["own"]


def test_chains_report_the_share_of_right_next_steps(tmp_path: Path) -> None:
    result = cot_job("tests.own", MeanOfColumns).execute(COT, tmp_path)["own"]
    losses = result["curves"]["loss"]["mean"]
    assert 0 <= result["next_step_accuracy"]["mean"] <= 1 and losses[-1] < losses[0]
