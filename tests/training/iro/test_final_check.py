"""The claim that an aligned model is above the frozen one, where some answers got no reward."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.iro.diagnostics import mean_and_error, mean_and_half_width
from training.iro.final_check import state_gain
from training.run import Run

NAN = math.nan


def row(*searches: list[float]) -> dict[str, Any]:
    """What ``Validation.validate`` says of a prompt whose searches' answers got these rewards."""
    picks = mean_and_error([answers[0] for answers in searches])[0]
    mean = mean_and_error([mean_and_error(answers)[0] for answers in searches])[0]
    return {"value_pick": picks, "mean": mean, "rewards": list(searches)}


def check_of(folder: Path, frozen: list[dict[str, Any]], aligned: list[dict[str, Any]]) -> Any:
    with closing(Run(folder, seed=0)) as run:
        state_gain(run, frozen, aligned, [[place] for place in range(len(frozen))], apart=True)
        (check,) = run.checks
        return check


def test_where_all_answers_have_rewards_the_gain_is_that_of_picks_over_means(tmp_path: Path) -> None:
    rewards = np.random.default_rng(0).normal(size=(12, 2, 5))
    frozen = [row(*prompt[:, :4].tolist()) for prompt in rewards]
    aligned = [row(*prompt[:, 4:].tolist()) for prompt in rewards]
    gain, half_width = mean_and_half_width([a["value_pick"] - f["mean"] for a, f in zip(aligned, frozen, strict=True)])
    check = check_of(tmp_path, frozen, aligned)
    assert check["got"] == f"{gain:.3f} ± {half_width:.3f}"
    assert check["name"].endswith("on 12 prompts that chose nothing")
    earlier = [[{name: each[name] for name in ("value_pick", "mean")} for each in rows] for rows in (frozen, aligned)]
    assert check_of(tmp_path, *earlier) == check


def test_an_answer_without_a_reward_counts_as_the_lowest(tmp_path: Path) -> None:
    """A model that writes what cannot be graded is not shown to gain by the few answers that can."""
    frozen = [row([1.0, float(n % 3)]) for n in range(20)]
    aligned = [row([3.0 + n % 2 if n < 6 else NAN]) for n in range(20)]
    check = check_of(tmp_path, frozen, aligned)
    filled = [row([0.0]) if math.isnan(each["value_pick"]) else each for each in aligned]
    assert check["got"] == check_of(tmp_path, frozen, filled)["got"] and not check["holds"]
    assert check["name"].endswith("; answers without a reward count as the lowest of all: 14 of the aligned model's 20")


def test_missing_rewards_of_the_frozen_model_count_alike(tmp_path: Path) -> None:
    frozen, aligned = [row([1.0, NAN]), row([0.0, 2.0]), row([NAN, NAN])], [row([4.0]), row([NAN]), row([-1.0])]
    check = check_of(tmp_path, frozen, aligned)
    gain, half_width = mean_and_half_width([4.0 - 0.0, -1.0 - 1.0, -1.0 + 1.0])
    assert check["got"] == f"{gain:.3f} ± {half_width:.3f}"
    assert check["name"].endswith(": 1 of the aligned model's 3, 3 of the frozen model's 6")


@pytest.mark.parametrize(("frozen", "aligned"), [(NAN, 1.0), (1.0, NAN), (NAN, NAN)])
def test_a_model_none_of_whose_answers_has_a_reward_shows_nothing(
    tmp_path: Path, frozen: float, aligned: float
) -> None:
    check = check_of(tmp_path, [row([frozen])] * 9, [row([aligned])] * 9)
    assert not check["holds"] and check["got"] == "nan ± nan"
