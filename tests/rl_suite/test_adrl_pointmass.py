"""The run over agents and bins: its smoke preset, and a run cut off between two seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("dm_control", reason="needs the rl extra")

from rl_suite.adrl_pointmass import JOB
from training.run import Cancelled

TINY = {"bins": (9,), "repeats": 1, "steps": 2400, "evaluations": 2, "episodes": 1, "speed_steps": 200}


@pytest.mark.slow(40)
@pytest.mark.parametrize("task", ["point_mass-easy", "walker-stand"])  # the state of the second cannot be saved
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path, task: str) -> None:
    config = TINY | {"bins": (3,), "variants_at": (), "task": task}
    uninterrupted = JOB.execute(config, tmp_path / "whole")
    stop_answers = iter([False] * 7 + [True] * 100)
    with pytest.raises(Cancelled):
        JOB.execute(config, tmp_path / "cut", should_stop=lambda: next(stop_answers))
    curves = [json.loads(file.read_text()) for file in (tmp_path / "cut" / "agents").glob("*/curve.json")]
    assert sorted(map(len, curves)) == [1, 2]  # one agent had been trained, another half
    resumed = JOB.execute(config | {"workers": 2}, tmp_path / "cut")
    assert resumed["curves"] == uninterrupted["curves"]
    assert resumed["table"] == uninterrupted["table"]
    assert all(check["holds"] for check in uninterrupted["checks"]), uninterrupted["checks"]
    assert (tmp_path / "cut" / "figures" / "curves.png").exists()


@pytest.mark.slow(30)
def test_every_variant_runs_on_a_harder_task(tmp_path: Path) -> None:
    short = {"steps": 1200, "evaluations": 1}
    result = JOB.execute(TINY | short | {"task": "reacher-hard", "variants_at": (9,)}, tmp_path)
    assert len(result["curves"]) == 8
    assert (tmp_path / "figures" / "curves.png").exists()
