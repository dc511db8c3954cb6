"""The whole job on SmolLM2 with a reward it can learn in a minute: more letters e."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from iro_server.alignment.definition import Alignment
from iro_server.engines.prepare import prepare_model
from tests.training.iro.test_loop import comparable
from training.iro.job import JOB

OPENINGS = ["The film", "I saw it", "This was", "We went", "She said", "There is", "He came", "It began", "Once", "At"]


def config_in(folder: Path) -> dict[str, Any]:
    train = folder / "train.jsonl"
    train.write_text("".join(json.dumps({"prompt": opening}) + "\n" for opening in OPENINGS))
    return {
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


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"counted_tokens": 200}, {"value_model": "lora", "backbone_layers": 2}])
def test_two_iterations_leave_bundles_figures_and_a_result(tmp_path: Path, options: dict) -> None:
    result = JOB.execute(config_in(tmp_path) | options, tmp_path / "run")
    assert [row["step"] for row in result["history"]] == [1, 2]
    for row in result["history"]:
        manifest = json.loads((Path(row["path"]) / "manifest.json").read_text())
        assert manifest["kind"] == ("lora" if "value_model" in options else "heads")
        assert manifest["metrics"]["full_valid_mean_reward"] == row["full_valid_mean_reward"]
        assert len(row["by_position"]["correlation"]) == 12
    # Guided rollouts: their mean is the steered policy's on prompts no value function was fitted on.
    assert result["history"][1]["train_mean_reward"] > result["history"][0]["train_mean_reward"]
    assert {path.name for path in (tmp_path / "run/figures").iterdir()} == {"reward.png", "correlation.png"}
    (tmp_path / "run/result.json").unlink()
    restored = (tmp_path / "run").rename(tmp_path / "restored")
    result = JOB.execute(config_in(tmp_path) | options, restored)
    assert [row["path"] for row in result["history"]] == [str(restored / "iterations" / str(t)) for t in (1, 2)]
    assert Path(result["best_checkpoint"]).is_relative_to(restored)


@pytest.mark.slow
def test_over_ray_lora_value_functions_are_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver loads no weights; the engine's process has as many threads as this one."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'iro-align[ray]'")
    small = {
        "value_model": "lora",
        "backbone_layers": 2,
        "rollouts_per_prompt": 4,
        "num_successors": 2,
        "max_tokens": 6,
    }
    config = config_in(tmp_path) | small
    whole = JOB.execute(config, tmp_path / "whole")
    monkeypatch.setenv("IRO_EXECUTOR", "ray")
    monkeypatch.setenv("IRO_RAY_CPUS", str(torch.get_num_threads()))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert comparable(JOB.execute(config, tmp_path / "run")) == comparable(whole)
    for t in (1, 2):
        bundles = [tmp_path / name / "iterations" / str(t) / "value.safetensors" for name in ("whole", "run")]
        assert bundles[0].read_bytes() == bundles[1].read_bytes()


@pytest.mark.slow
def test_over_ray_two_processes_fit_a_lora_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'iro-align[ray]'")
    small = {"value_model": "lora", "backbone_layers": 2, "iterations": 1, "num_successors": 2, "max_tokens": 6}
    config = config_in(tmp_path) | small
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = JOB.execute(config, tmp_path / "whole")
    torch.set_num_threads(threads)
    for name, value in {"EXECUTOR": "ray", "RAY_CPUS": "1", "RAY_ACTORS": "2", "RAY_FIT_ACTORS": "2"}.items():
        monkeypatch.setenv(f"IRO_{name}", value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    events: list[dict[str, Any]] = []
    result = JOB.execute(config, tmp_path / "run", on_event=events.append)
    assert not any("fits alone" in event["message"] for event in events)
    for name in ("correlation", "r2"):
        assert result["history"][0][name] == pytest.approx(whole["history"][0][name], abs=1e-2, nan_ok=True)


FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "word",
        "schema": {
            "type": "object",
            "properties": {"word": {"enum": ["tree", "bee", "sky", "lamp", "sea"]}},
            "required": ["word"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.slow(100)
def test_a_job_samples_under_its_response_format(tmp_path: Path) -> None:
    """Every completion fits, in the rollouts and in the searches under a tilt; the model serves so."""
    source = "def grade(sample, item): return sample['output_json']['word'].count('e')"
    grader = {"type": "python", "source": source}
    config = config_in(tmp_path) | {"grader": grader, "response_format": FORMAT, "iterations": 1, "max_tokens": 16}
    result = JOB.execute(config, tmp_path / "run")
    (row,) = result["history"]
    assert row["train_mean_parse_error"] == row["full_valid_mean_parse_error"] == 0
    assert Alignment(**config).served_defaults.response_format == FORMAT
