"""An own transformer in the laboratories: it learns, resumes to the bit, and the README's example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from theory.own_transformer import cot_job, icl_job
from training.run import Cancelled, RunError

ICL = {"M1": 6, "M2": 6, "d": 12, "d_y": 4, "tasks": 6, "length": 8, "prompts": 200, "deep_models": 2}
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


@pytest.mark.slow(4)
def test_chains_report_the_share_of_right_next_steps(tmp_path: Path) -> None:
    result = cot_job("tests.own", MeanOfColumns).execute(COT, tmp_path)["own"]
    losses = result["curves"]["loss"]["mean"]
    assert 0 <= result["next_step_accuracy"]["mean"] <= 1 and losses[-1] < losses[0]


class Constant(MeanOfColumns):
    """The same weights, another answer."""

    def forward(self, tokens: Tensor, live: Tensor) -> Tensor:
        return 0 * super().forward(tokens, live)


class WithoutOutputAxis(MeanOfColumns):
    def forward(self, tokens: Tensor, live: Tensor) -> Tensor:
        return super().forward(tokens, live)[:, 0]


def test_another_module_does_not_go_on_in_the_folder_of_the_first(tmp_path: Path) -> None:
    job, small = icl_job("tests.own", MeanOfColumns), ICL | {"deep_iterations": 2, "prompts": 20}
    first = job.execute(small, tmp_path / "mine")
    assert icl_job("tests.own", MeanOfColumns).execute(small, tmp_path / "mine") == first
    changed = icl_job("tests.own", Constant)
    with pytest.raises(RunError, match="holds another run"):
        changed.execute(small, tmp_path / "mine")
    with pytest.raises(ValidationError, match="of another module: leave out the field transformer"):
        changed.Config.model_validate(first["config"])


def test_a_module_typed_into_a_session_is_told_from_another() -> None:
    configs = []
    for factor in (1, 2):
        names: dict[str, Any] = {"MeanOfColumns": MeanOfColumns, "__name__": "session"}
        exec(
            f"class Typed(MeanOfColumns):\n    def forward(self, tokens, live):\n        return {factor} * tokens",
            names,
        )
        configs.append(icl_job("tests.own", names["Typed"]).Config.model_validate(ICL))
    assert configs[0].transformer != configs[1].transformer


@pytest.mark.parametrize("models", [1, 2])
def test_outputs_of_another_shape_are_refused_before_the_first_step(models: int, tmp_path: Path) -> None:
    job = icl_job("tests.own", WithoutOutputAxis)
    with pytest.raises(ValueError, match=r"forward gave \[16\], give \[16, 1\]: one row of outputs a prompt"):
        job.execute(ICL | {"deep_models": models}, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*.pt"))


def test_an_own_transformer_has_no_studies() -> None:
    with pytest.raises(ValidationError, match="an own transformer has no studies"):
        cot_job("tests.own", MeanOfColumns).Config.model_validate(COT | {"studies": ["attention"]})
