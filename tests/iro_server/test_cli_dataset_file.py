"""``iro align --dataset``: the training file that it writes, and whose folder it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from datasets import Dataset

from iro_server.cli.dataset_file import put_dataset
from tests.iro_server.test_cli import iro
from training.iro.config import AlignConfig
from training.run import Job, Run


@pytest.fixture(autouse=True)
def grader_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alignment job that does nothing, a model without files, and a grader in ``tmp_path``."""

    def run(config: AlignConfig, run: Run) -> dict[str, Any]:
        return {"best_checkpoint": "run/iterations/1", "best_iteration": 1}

    monkeypatch.setattr("iro_server.cli.main.load_batch_job", lambda name: Job(name, "", AlignConfig, run))
    monkeypatch.setattr("iro_server.cli.main.model_dir", lambda model: tmp_path)
    (tmp_path / "grader.py").write_text("def grade(sample, item): return 1.0\n")


def data_set(folder: Path, *prompts: str) -> str:
    Dataset.from_dict({"prompt": list(prompts)}).save_to_disk(str(folder))
    return str(folder)


def align(tmp_path: Path, name: str) -> Result:
    return iro("align", "--dataset", name, str(tmp_path / "grader.py"), "--out", str(tmp_path / "run"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_of_other_rows_leaves_the_folder_of_a_run_as_it_is(tmp_path: Path) -> None:
    first, second = data_set(tmp_path / "first", "One"), data_set(tmp_path / "second", "Two")
    assert align(tmp_path, first).exit_code == 0
    before = contents(tmp_path / "run")
    assert json.loads(before[tmp_path / "run/train.jsonl"]) == {"prompt": "One"}
    refused = align(tmp_path, second)
    expected = f"Error: {tmp_path / 'run'} holds a run of another training_file; choose another folder\n"
    assert (refused.exit_code, refused.stderr) == (2, expected)
    assert contents(tmp_path / "run") == before
    assert align(tmp_path, first).exit_code == 0
    assert contents(tmp_path / "run") == before


def test_a_lost_training_file_of_a_run_is_written_again(tmp_path: Path) -> None:
    name = data_set(tmp_path / "set", "One")
    assert align(tmp_path, name).exit_code == 0
    (tmp_path / "run/train.jsonl").unlink()
    assert align(tmp_path, name).exit_code == 0
    assert json.loads((tmp_path / "run/train.jsonl").read_text()) == {"prompt": "One"}


def test_the_file_of_a_run_that_did_not_start_is_replaced(tmp_path: Path) -> None:
    put_dataset(tmp_path / "run", data_set(tmp_path / "first", "One"), None, None, False)
    train = put_dataset(tmp_path / "run", data_set(tmp_path / "second", "Two"), None, None, False)
    assert json.loads(train.read_text()) == {"prompt": "Two"} and [*train.parent.iterdir()] == [train]


def test_a_run_of_an_earlier_version_is_known_by_its_training_file(tmp_path: Path) -> None:
    name = data_set(tmp_path / "first", "One")
    train = put_dataset(tmp_path / "run", name, None, None, False)
    (tmp_path / "run/config.json").write_text("{}")
    assert put_dataset(tmp_path / "run", name, None, None, False) == train
    with pytest.raises(ValueError, match="another training_file"):
        put_dataset(tmp_path / "run", data_set(tmp_path / "second", "Two"), None, None, False)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--text",), "--text"),
        (("--split", "train"), "--split"),
        (("--prompt-column", "question", "--text"), "--prompt-column, --text"),
    ],
)
def test_options_of_a_data_set_without_one_are_refused(options: tuple[str, ...], names: str, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "Once"}\n')
    files = (str(tmp_path / "train.jsonl"), str(tmp_path / "grader.py"))
    refused = iro("align", *files, *options, "--out", str(tmp_path / "run"))
    assert (refused.exit_code, refused.stderr) == (2, f"Error: {names}: only with --dataset\n")
    assert not (tmp_path / "run").exists()
