"""The whole job on SmolLM2 with a reward it can learn in a minute: more letters e."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iro_server.engines.prepare import prepare_model
from training.iro.job import JOB

OPENINGS = ["The film", "I saw it", "This was", "We went", "She said", "There is", "He came", "It began", "Once", "At"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"counted_tokens": 200}, {"value_model": "lora", "backbone_layers": 2}])
def test_two_iterations_leave_bundles_figures_and_a_result(tmp_path: Path, options: dict) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"prompt": opening}) + "\n" for opening in OPENINGS))
    config = {
        "model_dir": str(prepare_model()),
        "training_file": str(train),
        "grader": {"type": "python", "source": "def grade(sample, item): return sample['output_text'].count('e')"},
        "iterations": 2,
        "rollouts_per_prompt": 8,
        "chunk_length": 4,
        "max_tokens": 12,
        "validation_prompts": 2,
        "early_stop": False,
    }
    result = JOB.execute(config | options, tmp_path / "run")
    assert [row["step"] for row in result["history"]] == [1, 2]
    for row in result["history"]:
        manifest = json.loads((Path(row["path"]) / "manifest.json").read_text())
        assert manifest["kind"] == ("lora" if "value_model" in options else "heads")
        assert manifest["metrics"]["full_valid_mean_reward"] == row["full_valid_mean_reward"]
        assert len(row["by_position"]["correlation"]) == 12
    # Guided rollouts: their mean is the steered policy's on prompts no value function was fitted on.
    assert result["history"][1]["train_mean_reward"] > result["history"][0]["train_mean_reward"]
    assert {path.name for path in (tmp_path / "run/figures").iterdir()} == {"reward.png", "correlation.png"}
