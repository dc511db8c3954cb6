"""The run: interrupted and not, what it refuses, and its golden numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from training.bilevel.problems.fashion_mnist import Images
from training.bilevel.problems.hyper_cleaning import Agents
from training.bilevel.studies.comparison import bytes_ratio, bytes_to_reach
from training.bilevel.studies.hyper_cleaning import JOB, CleaningData, HyperCleaningConfig, learn
from training.fashion_mnist import FOLDER
from training.run import Cancelled


def tiny(folder: Path, **changes: object) -> dict[str, object]:
    config = {
        "corruptions": [0.2],
        "repeats": 2,
        "agents": 3,
        "images": 20,
        "concentration": 5.0,
        "pool": 4,
        "batch": 5,
    }
    return config | {"evaluations": 60, "points": 2, "data": str(folder)} | changes


@pytest.mark.slow(12)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    job = replace(JOB, draw=None)
    config = tiny(folder, methods=["ED/ATC-GT", "EF-SOBA, top-k", "C-SOBA, rand-k", "MDBO", "MA-DSBO-GT"])
    uninterrupted = job.execute(config, tmp_path / "uninterrupted")
    for patience in (1, 7):  # within the first method, then within the third or later
        stop = iter([False] * patience + [True])
        with pytest.raises(Cancelled):
            job.execute(config, tmp_path / "cut", should_stop=lambda stop=stop: next(stop))
    resumed = job.execute(config, tmp_path / "cut")
    assert {**resumed, "versions": None} == {**uninterrupted, "versions": None}
    rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("uninterrupted", "cut")]
    assert rows[0] == rows[1]
    assert all(np.isfinite(curve["accuracy"]).all() for curve in uninterrupted["curves"]["0.2"].values())
    JOB.execute(config, tmp_path / "cut")  # a finished run draws what it has not drawn
    assert (tmp_path / "cut" / "figures" / "hyper_cleaning.png").exists()


@pytest.mark.slow(6)
def test_bytes_are_counted(folder: Path, tmp_path: Path) -> None:
    """x: 3 · 20 images; y: 49 pixels and a bias for each of 10 classes."""
    methods = ["D-SOBA", "ED/ATC-GT", "SOBA", "EF-SOBA, top-k", "C-SOBA, rand-k"]
    curves = replace(JOB, draw=None).execute(tiny(folder, methods=methods, kept=0.1), tmp_path)["curves"]["0.2"]
    x, y, steps = 60, 500, 20
    assert curves["D-SOBA"]["bytes"][-1] == steps * 2 * 4 * (x + 2 * y)
    assert curves["ED/ATC-GT"]["bytes"][-1] == steps * 2 * 4 * (2 * x + 2 * y)
    assert curves["SOBA"]["bytes"][-1] == steps * 4 * (x + 2 * y)
    assert curves["C-SOBA, rand-k"]["bytes"][-1] == steps * 4 * (6 + 2 * 50)
    assert curves["EF-SOBA, top-k"]["bytes"][-1] == steps * (6 * (32 + 6) + 2 * 50 * (32 + 9)) / 8
    assert curves["D-SOBA"]["evaluations"] == [30, 60]


def test_each_method_uses_its_best_scale_of_the_step_sizes(folder: Path, tmp_path: Path) -> None:
    """A scale at which the method diverges is not chosen, and a scale multiplies both step sizes."""
    job = replace(JOB, draw=None)
    tuned = job.execute(tiny(folder, methods=["ED"], scales=[1e12, 0.5]), tmp_path / "tuned")["curves"]["0.2"]["ED"]
    assert tuned["scale"] == 0.5
    halved = tiny(folder, methods=["ED"], scales=[1.0], alpha=150.0, beta=0.125)
    assert job.execute(halved, tmp_path / "halved")["curves"]["0.2"]["ED"] == {**tuned, "scale": 1.0}


def test_a_scale_is_chosen_where_no_label_is_wrong(folder: Path, tmp_path: Path) -> None:
    """There x cannot be judged as a detector of wrong labels."""
    config = tiny(folder, methods=["ED"], scales=[1e12, 0.5], corruptions=[0.0])
    curve = replace(JOB, draw=None).execute(config, tmp_path)["curves"]["0"]["ED"]
    assert curve["scale"] == 0.5 and curve["finite"] == [True, True]


@pytest.mark.parametrize("name", ["ED", "SOBA"])
def test_a_class_that_the_clean_images_of_the_first_draw_lack_has_an_output(name: str) -> None:
    """Wrong training labels, and the images of other draws, may be of it."""
    config = HyperCleaningConfig(agents=3, batch=5, points=2, evaluations=60, corruptions=(0.2,), repeats=1)
    train = Images(torch.rand(1, 3, 20, 4), torch.full((1, 3, 20), 9))
    agents = Agents(train, train._replace(labels=train.labels - 1), torch.ones(1, 3, 20, dtype=torch.bool))
    data = CleaningData(agents, Images(train.pixels[0, 0], train.labels[0, 0]))
    generator = torch.Generator().manual_seed(0)
    (curve,) = learn(config, name, data, 1e-3, [generator], generator, lambda: None)
    assert curve["finite"] == [True]


def test_bytes_are_compared_at_the_best_accuracy_that_both_reach() -> None:
    dense = {"bytes": [100.0, 200.0, 300.0], "accuracy": [[0.4, 0.6], [0.6, 0.8], [0.8, 0.8]]}
    lossy = {"bytes": [10.0, 20.0], "accuracy": [[0.5, 0.5], [0.6, 0.6]]}
    assert bytes_to_reach(dense, 0.65) == pytest.approx(175)
    assert bytes_ratio(lossy, dense) == {"accuracy": pytest.approx(0.6), "ratio": pytest.approx(20 / 150)}


def test_what_is_refused_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no method SGD; there are MA-DSBO-GT, MDBO"):
        JOB.execute(tiny(folder, methods=["SGD"]), tmp_path / "a")
    for shares, message in (([10, 20], "distinct shares from 0 to 1, not"), ([0.2, 0.2], "distinct shares")):
        with pytest.raises(ValidationError, match=message):
            JOB.execute(tiny(folder, corruptions=shares), tmp_path / "a")
    with pytest.raises(ValidationError, match="MDBO takes 4 steps within 60 evaluations, fewer than 10 points"):
        JOB.execute(tiny(folder, points=10), tmp_path / "a")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is missing.*apt install dataset-fashion"):
        JOB.execute(tiny(tmp_path), tmp_path / "b")
    with pytest.raises(ValueError, match="pool: must divide the images' side of 28 pixels, unlike 3"):
        JOB.execute(tiny(folder, pool=3), tmp_path / "c")


@pytest.mark.slow(10)
@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs dataset-fashion-mnist")
def test_the_smoke_run_holds_its_golden_numbers(tmp_path: Path) -> None:
    result = JOB.execute(JOB.presets["smoke"], tmp_path)
    assert all(check["holds"] for check in result["checks"]), result["checks"]
    rows = result["summary"]["0.3"]
    assert rows["ED"]["gain_over_d_soba"]["mean"] == pytest.approx(0.1206, abs=0.02)
    assert rows["EF-SOBA, rand-k"]["bytes_over_soba"]["ratio"] == pytest.approx(0.0615, abs=0.02)
