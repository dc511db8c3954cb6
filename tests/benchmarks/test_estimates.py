"""The benchmark of estimates: what it reads of a job, what it makes of predictions, and a run at smoke size."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.estimated_jobs import EngineLoader, gain_of, largest_size, piece_case, realised
from benchmarks.estimates import each_case, predicted, spearman, summary, totals
from tests.training.iro.toy_job import job, toy_config, write_prompts
from training.run import Run

ROOT = Path(__file__).parents[2]


def toy_piece(folder: Path) -> dict[str, Any]:
    """A finished piece of a toy task; its job's result."""
    piece = folder / "pieces" / "keywords-0"
    piece.mkdir(parents=True)
    config = toy_config(piece).model_copy(update={"validation_file": write_prompts(piece / "validation.jsonl", 20)})
    return job().execute(config, piece / "align")


def test_a_finished_pieces_gain_is_that_of_its_jobs_own_check(tmp_path: Path) -> None:
    assert piece_case(tmp_path, "keywords", 0) is None
    result = toy_piece(tmp_path)
    case = piece_case(tmp_path, "keywords", 0)
    assert case is not None and case.training_file.exists() and case.validation_file.exists()
    with ExitStack() as stack:
        outcome = realised(case, EngineLoader(stack))
    check = result["checks"][0]
    gain, half = map(float, re.findall(r"-?\d+\.\d+", check["got"]))
    student = stats.t.ppf(0.975, int(re.findall(r"on (\d+) prompts", check["name"])[0]) - 1)
    assert [outcome["gain"], student * outcome["error"]] == pytest.approx([gain, half], abs=1e-3)
    assert outcome["is_shown"] == check["holds"] and outcome["failed"] is None
    assert outcome["spent"]["base_tokens"] > 0 and outcome["spent"]["reward_calls"] > 0


def test_an_answer_without_a_reward_counts_as_the_lowest_in_a_gain_too(tmp_path: Path) -> None:
    """Prompts that were searched twice: the rows of a checkpoint are of one search each."""

    def row(prompt: int, reward: float) -> dict[str, Any]:
        picks = dict.fromkeys(("value_pick", "grader_pick", "mean"), reward)
        return {"prompt": prompt, "rewards": [reward], "tokens": 1, "logprob": 0.0} | picks

    frozen = [row(prompt, prompt + change) for prompt in range(3) for change in (0.0, 1.0)]
    aligned = [row(prompt, reward) for prompt, reward in enumerate((math.nan, math.nan, 5.0)) for _ in range(2)]
    with closing(Run(tmp_path, seed=0)) as run:
        run.step("check-0-0", lambda: {"rows": frozen})
        run.step("check-best-0", lambda: {"rows": aligned})
    gains = [0.0 - 0.5, 0.0 - 1.5, 5.0 - 2.5]
    error = np.std(gains, ddof=1) / math.sqrt(3)
    assert gain_of(tmp_path) == (pytest.approx(np.mean(gains)), pytest.approx(error), False)


def test_the_rank_correlation_has_mean_ranks_for_ties_and_an_interval() -> None:
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(
        {"mean": 0.8208, "low": -0.4163, "high": 0.9920}, abs=1e-3
    )
    assert spearman([0, 0, 0, 0], [1, 2, 3, 4]) is None and spearman([1, 2, 3], [1, 2, 3]) is None


def estimate(verdict: str, gain: float | None) -> dict[str, Any]:
    expected = None if gain is None else {"mean": gain, "low": gain - 0.1, "high": gain + 0.1}
    cost = {"base_tokens": 1000, "seconds": 10, "grader_calls": 100, "disk_bytes": 2**20}
    spent = {"base_tokens": 40, "seconds": 0.5, "grader_calls": 8}
    counts = {"prompts": 8, "completions": 64, "message": ""}
    return {"verdict": verdict, "expected_gain": expected, "cost": cost, "estimate_cost": spent} | counts


def test_a_summary_counts_go_verdicts_without_a_gain_and_shares_of_cost() -> None:
    outcomes = [("go", 0.9, 1.5, 0.1, None), ("go", 0.5, 0.1, 0.2, None), ("more_rollouts", 0.3, 0.6, 0.1, None)]
    outcomes += [("flaky_grader", 0.8, 0.0, 0.1, None), ("constant_reward", 0.0, 0.0, 0.0, "constant_reward")]
    rows = [
        {"case": str(number), "kind": "task", "gain": gain, "error": error, "failed": failed}
        | {"is_shown": gain - 1.96 * error > 0, "spent": {"base_tokens": 1000, "seconds": 20, "reward_calls": 9}}
        | predicted(estimate(verdict, expected))
        for number, (verdict, expected, gain, error, failed) in enumerate(outcomes)
    ]
    numbers = summary(rows)
    assert numbers["go"] == ["0", "1"] and numbers["go_without_a_gain"] == ["1"] and numbers["gain_without_go"] == ["2"]
    assert numbers["share"] == {"base_tokens": 0.04, "seconds": 0.025}
    assert numbers["spearman"]["mean"] > numbers["spearman_without_verdicts"]["mean"]
    assert "| 4 | constant reward | 0.000 [-0.100, 0.100] | constant_reward |" in each_case({"rows": rows})
    assert "4.0%" in totals({"rows": rows, "summary": numbers})


def test_the_largest_size_of_a_folder_is_kept_when_files_go(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    with largest_size(tmp_path) as size:
        while not size():
            pass
        (tmp_path / "a").unlink()
    assert size() == 5000


@pytest.mark.slow(240)
def test_a_planted_failure_is_estimated_and_run_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """The real model and server. The job of the constant grader ends for the reason that the estimate gives."""
    sizes = ["--train-prompts", "6", "--validation-prompts", "1", "--job-rollouts", "2", "--rollouts", "2"]
    options = ["--cases", "constant", "keywords", "--max-tokens", "8", "--out", str(tmp_path), *sizes]
    command = [sys.executable, "-m", "benchmarks.estimates", *options, "--results", str(tmp_path / "results.json")]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "2 of 12 cases are in" in first.stdout and not (tmp_path / "results.json").exists()
    constant, keywords = (
        json.loads((tmp_path / f"{name}-0" / "row.json").read_text()) for name in ("constant", "keywords")
    )
    assert (constant["verdict"], constant["failed"], constant["gain"]) == ("constant_reward", "constant_reward", 0)
    assert keywords["spent"]["base_tokens"] > 0 and keywords["spent"]["disk_bytes"] > 0
    assert keywords["estimate_cost"]["base_tokens"] > 0 and keywords["cost"]["disk_bytes"] > 0
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert second.stdout == first.stdout
