"""A gain whose interval includes 0: the job's result and events say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.iro.toy_job import MODEL, job
from training.iro.config import AlignConfig
from training.iro.data import split
from training.iro.diagnostics import mean_and_half_width
from training.iro.job import AlignJob, with_improvement
from training.iro.seeds import SPLIT
from training.run import Run, rng_of


def improvement_job() -> AlignJob:
    """The toy job, its result completed as the real job's is."""
    toy = job()

    def run(config: AlignConfig, run: Run) -> dict[str, Any]:
        return with_improvement(config, run, toy.run(config, run))

    return AlignJob("align", "", AlignConfig, run)


def unproven(config: AlignConfig, rewarded: int) -> AlignConfig:
    """A grader that rewards ones, and on all but ``rewarded`` of the check prompts punishes them."""
    checked = [prompt.item["prompt"] for prompt in split(config, MODEL, rng_of(config.seed, SPLIT)).check]
    source = (
        f"PUNISHED = {set(checked[rewarded:])!r}\ndef grade(sample, item):\n"
        "    ones = sample['output_text'].count('1')\n    return -ones if item['prompt'] in PUNISHED else ones\n"
    )
    return config.model_copy(update={"grader": {"type": "python", "source": source, "workers": 1}})


def execute(config: AlignConfig, folder: Path, level: str = "warn") -> tuple[dict[str, Any], list[str]]:
    """The result, and the messages of the events of this ``level``."""
    events: list[dict[str, Any]] = []
    result = improvement_job().execute(config, folder, on_event=events.append)
    return result, [event["message"] for event in events if event["level"] == level]


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_gain_of_zero_is_shown_as_rarely_on_few_prompts_as_on_many(count: int) -> None:
    draws = np.random.default_rng(0).standard_normal((4000, count))
    shown = [mean - half_width > 0 for mean, half_width in map(mean_and_half_width, draws)]
    assert np.mean(shown) == pytest.approx(0.025, abs=0.008)


def test_one_prompt_gives_no_interval() -> None:
    assert np.isnan(mean_and_half_width([1.0, np.nan])[1])


def test_a_proven_gain_is_an_improvement(config: AlignConfig, tmp_path: Path) -> None:
    result, warnings = execute(config, tmp_path / "run")
    assert result["improved"] is True and result["checks"][0]["holds"] and not warnings


def test_an_event_gives_the_gain(config: AlignConfig, tmp_path: Path) -> None:
    result, messages = execute(config, tmp_path / "run", level="info")
    (check,) = result["checks"]
    assert messages[-1] == f"Gain: {check['got']} ({check['name']}). The 95 % interval is above 0"


@pytest.mark.parametrize("keep", [False, True])
def test_a_gain_whose_interval_includes_0_is_none(config: AlignConfig, tmp_path: Path, keep: bool) -> None:
    config = unproven(config, rewarded=4).model_copy(update={"keep_unproven": keep})
    assert len(split(config, MODEL, rng_of(config.seed, SPLIT)).check) == 4 + 1  # four are rewarded, one is punished
    result, warnings = execute(config, tmp_path / "run")
    assert result["best_checkpoint"] is not None and not result["checks"][0]["holds"]
    assert result["improved"] is False
    (warning,) = warnings
    assert result["checks"][0]["got"] in warning and "not above 0" in warning
    assert ("answers as the frozen model" in warning) is not keep


def test_a_loss_is_no_improvement(config: AlignConfig, tmp_path: Path) -> None:
    """The job ends with a model, and says what it is worth."""
    result, warnings = execute(unproven(config, rewarded=0), tmp_path / "run")
    assert result["improved"] is False and (Path(result["best_checkpoint"]) / "manifest.json").is_file()
    (warning,) = warnings
    assert result["checks"][0]["got"].startswith("-") and result["checks"][0]["got"] in warning


def test_a_gain_of_the_answers_alone_that_can_be_graded_is_none(config: AlignConfig, tmp_path: Path) -> None:
    """The grader fails on what the aligned model writes, and the frozen one hardly does."""
    source = "def grade(sample, item):\n    ones = sample['output_text'].count('1')\n"
    grader = {"type": "python", "source": f"{source}    assert ones < 4\n    return ones\n", "workers": 1}
    result, warnings = execute(config.model_copy(update={"grader": grader, "iterations": 1}), tmp_path / "run")
    (check,) = result["checks"]
    assert not result["improved"] and check["name"] in warnings[-1]
    assert "on 5 prompts" in check["name"] and "of the aligned model's 5" in check["name"]
