"""Figures of a finished alignment run."""

from __future__ import annotations

from pathlib import Path

from tests.training.iro.toy_job import job
from training.iro.config import AlignConfig
from training.iro.figures import draw

UNGRADED = "def grade(sample, item): return None if item['held_out'] else sample['output_text'].count('1')"


def test_a_run_without_a_validation_reward_has_figures(config: AlignConfig, tmp_path: Path) -> None:
    """A finished job does not fail where the grader gave none to the validation file's rows."""
    rows = config.training_file.read_text().splitlines()
    for name, part, held_out in (("train", rows[:-4], "false"), ("valid", rows[-4:], "true")):
        lines = [f'{row[:-1]}, "held_out": {held_out}}}\n' for row in part]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    grader = {"type": "python", "source": UNGRADED, "workers": 1}
    ungraded = config.model_copy(update={"grader": grader, "validation_file": tmp_path / "valid.jsonl"})
    result = job().execute(ungraded, tmp_path / "run")
    assert result["baseline"]["full_valid_mean_reward"] is None
    draw(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run/figures").glob("*.png")} == {"reward.png", "correlation.png"}
