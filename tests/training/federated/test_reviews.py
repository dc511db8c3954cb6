"""`iro run federated.reviews` with MiniLM and real reviews."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from training.federated.reviews import JOB, ReviewsConfig, lower_outputs
from training.run import Cancelled

TINY = {
    "methods": ("FADAS", "FedAvg"),
    "delays": ("mild", "heavy-tailed"),
    "grids": {"FADAS": (1e-3, 1e-2)},
    "steps": {"FedAvg": 1.0},
    "seeds": 1,
    "updates": 8,
    "tuning_updates": 4,
    "evaluate_every": 4,
    "clients": 4,
    "concurrency": 3,
    "buffer_size": 2,
    "batch": 2,
    "local_steps": 1,
    "rank": 2,
    "tokens": 8,
    "train": 100,
    "development": 100,
    "test": 100,
    "workers": 1,
}


@pytest.mark.slow(20)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    job = replace(JOB, draw=None)
    uninterrupted = job.execute(TINY, tmp_path / "uninterrupted")
    for patience in (1, 5):  # among the splits that pass the lower layers, then among the trials of steps
        stop = iter([False] * patience + [True])
        with pytest.raises(Cancelled):
            job.execute(TINY, tmp_path / "stopped", should_stop=lambda stop=stop: next(stop))
    resumed = job.execute(TINY | {"workers": 2}, tmp_path / "stopped")
    assert resumed["results"] == uninterrupted["results"] and resumed["steps"] == uninterrupted["steps"]
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("uninterrupted", "stopped")]
    assert rows[0] == rows[1]
    assert set(uninterrupted["steps"]["mild"]["FADAS"]["tried"]) == {"0.001", "0.01"}


@pytest.mark.slow(20)
def test_the_smoke_run_holds_its_checks_and_draws(tmp_path: Path) -> None:
    result = JOB.execute(JOB.presets["smoke"], tmp_path)
    assert all(check["holds"] for check in result["checks"]), result["checks"]
    assert (tmp_path / "figures" / "accuracy.png").exists()


def test_more_sentences_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="sentences are needed, there are 8530: lower train"):
        lower_outputs(ReviewsConfig(train=8000), "test")


@pytest.mark.parametrize("preset", list(JOB.presets))
def test_every_preset_is_a_config(preset: str) -> None:
    ReviewsConfig.model_validate(JOB.presets[preset])


def test_every_method_tries_equally_many_steps() -> None:
    config = ReviewsConfig.model_validate(JOB.presets["two-cores"])
    assert {len(config.tried_steps(method)) for method in config.methods} == {4}
    assert config.seeds == 5 and len(config.delays) == 3
