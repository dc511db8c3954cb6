"""The run of the ready problems: interrupted and not, what it refuses, and that methods see the same data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils._pytree import tree_leaves, tree_map

from tests.training.idx import write_idx
from training.bilevel.studies import ready_problems
from training.bilevel.studies.problems import JOB
from training.fashion_mnist import FOLDER, read
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


def test_a_method_that_takes_fewer_steps_than_points_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="points: MDBO takes 4 steps within 60 evaluations, fewer than 6 points"):
        JOB.execute(tiny(folder, studies=["policy"], points=6), tmp_path)
    assert JOB.Config(studies=("meta",), evaluations=60, points=6)


def write_images(folder: Path, parts: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Path:
    folder.mkdir()
    for stem, (images, labels) in parts.items():
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", (images * 255).numpy())
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels.numpy())
    return folder


@pytest.mark.parametrize("name", ["meta", "representation", "ridges"])
def test_step_sizes_are_chosen_without_test_images(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other test images change the scores of the results alone. Images of the tuning draw's scores have a mark."""
    monkeypatch.setattr(ready_problems, "IMAGES", 20)
    (images, labels), (test_images, test_labels) = read(folder, "train"), read(folder, "test")
    images[1250:, :2, :2] = 1
    train = {"train": (images, labels)}
    plain = write_images(tmp_path / "plain", train | {"t10k": (test_images, test_labels)})
    other = write_images(tmp_path / "other", train | {"t10k": (test_images.flip(1), (test_labels + 1) % 10)})
    study = ready_problems.STUDIES[name]

    def score(data: Path, tuning: bool) -> float:
        prepared = study.prepare(data, 3, [0], study.steps, tuning)
        x, y = (tree_map(lambda leaf: leaf[None], part) for part in (prepared.setups[0].x, prepared.setups[0].y))
        return prepared.scores[0](x, y)

    assert score(plain, True) == score(other, True)
    assert score(plain, False) != score(other, False)
    draw_batch = study.prepare(plain, 3, [0], study.steps, True).draw_batch
    inputs = [leaf for _ in range(20) for leaf in tree_leaves(draw_batch()) if leaf.is_floating_point()]
    assert all((leaf[..., 0] == 0).all() for leaf in inputs), "an agent has an image of the scores"


@pytest.mark.slow(30)
@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs dataset-fashion-mnist")
def test_every_study_runs(tmp_path: Path) -> None:
    summary = JOB.execute(tiny(FOLDER), tmp_path)["summary"]
    assert summary["ridges"]["EF-SOBA, top-k"]["bytes_over_soba"]["ratio"] > 0
    assert summary["representation"]["SOBA"]["accuracy"]["mean"] > 0.1
