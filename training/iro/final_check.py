"""How far an aligned model is above the frozen one, on prompts that did not choose it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

from training.iro.diagnostics import mean_and_error, mean_and_half_width
from training.json_values import JsonObject
from training.run import Run

Rewards = list[list[list[float]]]
"""Of each row, each of its searches, each answer of the search; NaN where the grader gave none."""


def state_gain(
    run: Run, frozen: Sequence[JsonObject], aligned: Sequence[JsonObject], groups: Sequence[Sequence[int]], apart: bool
) -> None:
    """State in the run's record by how much the aligned model's picks are above the frozen model's mean.

    An answer that got no reward counts as the lowest reward of both models' answers. The claim does not hold where all
    of one model's got none. ``frozen``, ``aligned``: rows of ``Validation`` on the same prompts. ``groups``: places of
    the rows of each different prompt. ``apart``: whether the prompts chose nothing.
    """
    by_model = {"aligned": _rewards(aligned, "value_pick"), "frozen": _rewards(frozen, "mean")}
    gains = gains_of(frozen, aligned)
    gain, half_width = mean_and_half_width([mean_and_error([gains[i] for i in group])[0] for group in groups])
    counts = {model: _ungraded(rewards) for model, rewards in by_model.items()}
    ungraded = [f"{count} of the {model} model's {answers}" for model, (count, answers) in counts.items() if count]
    run.check(
        "held-out reward of the aligned model, without calling the grader, less the frozen model's, on "
        f"{len(groups)} prompts that chose {'nothing' if apart else 'it, as there are no others'}"
        + f"; answers without a reward count as the lowest of all: {', '.join(ungraded)}"
        * bool(ungraded),
        expected="95 % interval above 0",
        got=f"{gain:.3f} ± {half_width:.3f}",
        holds=gain - half_width > 0,
    )


def gains_of(frozen_rows: Sequence[JsonObject], aligned_rows: Sequence[JsonObject]) -> list[float]:
    """Of each row, as ``state_gain`` counts it; NaN where one model has no reward at all."""
    frozen, aligned = _rewards(frozen_rows, "mean"), _rewards(aligned_rows, "value_pick")
    graded = [[reward for reward in _answers(rewards) if not math.isnan(reward)] for rewards in (frozen, aligned)]
    lowest = min(chain.from_iterable(graded)) if all(graded) else math.nan

    def mean(searches: list[list[float]]) -> float:
        filled = [[lowest if math.isnan(reward) else reward for reward in answers] for answers in searches]
        return mean_and_error([mean_and_error(answers)[0] for answers in filled])[0]

    return [mean(after) - mean(before) for before, after in zip(frozen, aligned, strict=True)]


def _rewards(rows: Sequence[JsonObject], mean: str) -> Rewards:
    """``mean``: the field that stands for the answers of an earlier version's rows, which have no ``rewards``."""
    return [row.get("rewards", [[row[mean]]]) for row in rows]


def _answers(rewards: Rewards) -> list[float]:
    return [reward for searches in rewards for answers in searches for reward in answers]


def _ungraded(rewards: Rewards) -> tuple[int, int]:
    """How many answers got no reward, and of how many."""
    answers = _answers(rewards)
    return sum(map(math.isnan, answers)), len(answers)
