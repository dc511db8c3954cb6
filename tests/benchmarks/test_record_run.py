"""A finished research job becomes a results file of claims, from which tables and figures are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gymnasium", reason="needs the rl extra")

from benchmarks.record import read
from benchmarks.record_run import record
from benchmarks.research.claims import claims
from benchmarks.research.rl import dose_values, doses_figure
from rl_suite.adrl_doses import JOB


def test_a_research_job_is_recorded_as_claims_of_its_seeds(tmp_path: Path) -> None:
    config = {"sizes": (3, 4), "interactions": (0.5,), "datasets": 3, "tuning_datasets": 1, "episodes": 20}
    result = JOB.execute(config | {"thresholds": (0.1, 0.6), "updates": (4, 8)}, tmp_path / "run")
    content = read(record(tmp_path / "run", "tiny", tmp_path / "results"))
    assert content["run"]["benchmark"] == "rl.adrl_doses"
    by_name = {claim["paper"]: claim for claim in content["claims"]}
    gap = next(claim for name, claim in by_name.items() if name.endswith("doses: AD-BCQ above BCQ"))
    learners = result["rows"][0]["learners"]
    gaps = [a - b for a, b in zip(learners["AD-BCQ"]["values"], learners["BCQ"]["values"], strict=True)]
    assert gap["ours"][0]["mean"] == pytest.approx(sum(gaps) / 3)
    assert gap["test"]["df"] == 2
    assert claims(content).count("\n") == 1 + len(content["claims"])
    assert "0.5, 3" in dose_values(content)
    doses_figure(content, tmp_path / "doses.png")
    assert (tmp_path / "doses.png").stat().st_size > 5000


def test_an_unfinished_run_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the run has not finished"):
        record(tmp_path, "tiny", tmp_path / "results")
