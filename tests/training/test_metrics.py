"""metrics.jsonl as a table and as TensorBoard scalars."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from training.metrics import flatten, metrics_csv
from training.run import Run

GRADERS = {
    "graders": [{"name": "style", "type": "python", "mean": 0.5}, {"name": "fit", "type": "python", "mean": None}]
}


def scalars(folder: Path) -> list[tuple[int, str, float]]:
    """(step, tag, value) of every scalar in the folder's event files, in order."""
    found = []
    for path in sorted(folder.glob("*.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])  # a checksum follows length and data
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += 16 + length
    return found


def test_rows_are_flattened_by_path_and_label() -> None:
    row = {"step": 1, "timing": {"step": {"eval": 2.0}}, "betas": [1.0, 0.5], "scores": GRADERS, "text": "a"}
    assert flatten(row) == {
        "step": 1,
        "timing/step/eval": 2.0,
        "betas/0": 1.0,
        "betas/1": 0.5,
        "scores/graders/python/style/mean": 0.5,
        "scores/graders/python/fit/mean": None,
        "text": "a",
    }


def test_the_table_has_the_step_first_and_a_cell_for_what_a_row_has(tmp_path: Path) -> None:
    run = Run(tmp_path, seed=0)
    run.metrics({"best": 2.5, "step": 0})
    run.metrics({"step": 1, "loss": float("nan"), "scores": GRADERS})
    text = metrics_csv(tmp_path)
    assert text.splitlines()[0].startswith("step,best,loss,scores/")
    first, second = csv.DictReader(text.splitlines())
    assert (first["step"], first["best"], first["loss"]) == ("0", "2.5", "")
    assert (second["step"], second["best"], second["loss"]) == ("1", "", "")
    assert second["scores/graders/python/style/mean"] == "0.5"


def test_tensorboard_has_each_number_once_whatever_was_killed(tmp_path: Path) -> None:
    run = Run(tmp_path, seed=0)

    def told(step: int) -> None:
        run.metrics({"step": step, "reward": step / 2, "note": "a", "parts": {"none": None, "one": 1}})

    run.step("1", lambda: told(1))
    told(2)  # and killed: the step has no checkpoint
    assert [step for step, _, _ in scalars(tmp_path / "tensorboard")] == [1, 1, 2, 2]
    run = Run(tmp_path, seed=0)
    run.step("2", lambda: told(2))
    run.step("3", lambda: told(3))
    run.close()
    assert scalars(tmp_path / "tensorboard") == [
        (step, tag, value) for step in (1, 2, 3) for tag, value in (("reward", step / 2), ("parts/one", 1.0))
    ]


def test_series_have_tags_of_their_own_and_points_without_a_step_are_counted(tmp_path: Path) -> None:
    run = Run(tmp_path, seed=0)
    for training, step in (("fixed-0", 0), ("fixed-1", 0), ("fixed-1", 1)):
        run.metrics({"training": training, "step": step, "pass": "joint", "loss": 0.5})
    for method, accuracy in (("ED", 0.25), ("D-SOBA", 0.5), ("ED", 0.75)):
        run.metrics({"study": "meta", "method": method, "accuracy": accuracy})
    run.close()
    assert scalars(tmp_path / "tensorboard") == [
        (0, "fixed-0/loss", 0.5),
        (0, "fixed-1/loss", 0.5),
        (1, "fixed-1/loss", 0.5),
        (0, "meta/ED/accuracy", 0.25),
        (0, "meta/D-SOBA/accuracy", 0.5),
        (1, "meta/ED/accuracy", 0.75),
    ]


def test_a_steps_time_is_that_of_whoever_computed_it(tmp_path: Path) -> None:
    Run(tmp_path, seed=0).checkpoint("a", 1, seconds=100.0)
    run = Run(tmp_path, seed=0)
    run.step("a", pytest.fail)
    run.step("b", lambda: 2)
    assert 100 < run.seconds(["a", "b"]) < 101
