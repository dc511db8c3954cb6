"""The loop in one file against the full trainer: on the toy language model, and on SmolLM2-135M."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iro_server.engines.prepare import prepare_model
from iro_server.graders.parsing import parse_grader
from tests.training.iro.toy_job import Toy, job
from training.iro.config import AlignConfig
from training.iro.job import JOB
from training.iro.simple_loop import SimpleLoop, run_simple_loop

OPENINGS = [
    f"{subject} {verb}"
    for subject in ("The film", "My sister", "A letter", "This year", "The old house", "Nobody")
    for verb in ("was", "began to", "had never", "seemed")
]
TOLERANCE = 0.35
"""Mean letters a completion: one letter on one of three validation prompts. The trainer stores hidden states in float16
and the simple loop does not, which may change a pick; the rewards were equal when this was written."""


def trainer_rewards(result: dict[str, Any]) -> list[float]:
    """Validation reward of the frozen model, then after each iteration."""
    return [row["full_valid_mean_reward"] for row in [result["baseline"], *result["history"]]]


def test_on_the_toy_model_the_simple_loop_has_the_rewards_of_the_full_trainer(
    config: AlignConfig, tmp_path: Path
) -> None:
    config = config.model_copy(update={"betas": [1.0, 1.0]})
    rewards = trainer_rewards(job().execute(config, tmp_path / "run"))
    with parse_grader(config.grader) as grader:
        simple_rewards = SimpleLoop(config, Toy(), grader).run()
    assert simple_rewards == pytest.approx(rewards)
    assert simple_rewards[-1] > simple_rewards[0] + 1


@pytest.mark.slow
def test_on_smollm2_the_simple_loop_has_the_rewards_of_the_full_trainer(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"prompt": opening}) + "\n" for opening in OPENINGS))
    config = AlignConfig(
        model_dir=prepare_model(),
        training_file=train,
        grader={"type": "python", "source": "def grade(sample, item): return sample['output_text'].count('e')"},
        iterations=2,
        betas=[1.0, 1.0],
        rollouts_per_prompt=8,
        max_tokens=12,
        validation_prompts=4,
        counted_tokens=200,
        early_stop=False,
        tilt="off",
    )
    rewards = trainer_rewards(JOB.execute(config, tmp_path / "run"))
    simple_rewards = run_simple_loop(config)
    assert simple_rewards == pytest.approx(rewards, abs=TOLERANCE)
    assert simple_rewards[-1] > simple_rewards[0] + 2 * TOLERANCE
