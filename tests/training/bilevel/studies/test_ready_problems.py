"""The run of the ready problems: interrupted and not, what it refuses, and that methods see the same data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from training.bilevel.studies.problems import JOB
from training.fashion_mnist import FOLDER
from training.run import Cancelled


def tiny(folder: Path, **changes: object) -> dict[str, object]:
    config = {"repeats": 2, "agents": 3, "evaluations": 60, "points": 2, "scales": [1.0, 0.1], "data": str(folder)}
    return config | changes


@pytest.mark.slow(8)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    job = replace(JOB, draw=None)
    config = tiny(folder, studies=["policy"])
    uninterrupted = job.execute(config, tmp_path / "uninterrupted")
    stop = iter([False] * 25 + [True])
    with pytest.raises(Cancelled):
        job.execute(config, tmp_path / "cut", should_stop=lambda: next(stop))
    resumed = job.execute(config, tmp_path / "cut")
    assert {**resumed, "versions": None} == {**uninterrupted, "versions": None}
    starts = [curve["error"][0] for curve in uninterrupted["curves"]["policy"].values()]
    assert all(start == starts[0] for start in starts), "methods start at the same errors, of the same draws"
    assert np.allclose(starts, 1, rtol=1e-12)
    JOB.execute(config, tmp_path / "cut")
    assert (tmp_path / "cut" / "figures" / "problems.png").exists()


def test_a_study_that_is_not_known_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no study knapsack; there are policy, meta, representation, ridges"):
        JOB.execute(tiny(folder, studies=["knapsack"]), tmp_path)


@pytest.mark.slow(30)
@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs dataset-fashion-mnist")
def test_every_study_runs(tmp_path: Path) -> None:
    summary = JOB.execute(tiny(FOLDER), tmp_path)["summary"]
    assert summary["ridges"]["EF-SOBA, top-k"]["bytes_over_soba"]["ratio"] > 0
    assert summary["representation"]["SOBA"]["accuracy"]["mean"] > 0.1
