"""The alarm of a job whose reward rises while its text leaves what the frozen model writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.training.iro.toy_job import job
from training.iro.config import AlignConfig
from training.iro.over_optimization import departures, first_usual, measures, rises

FROZEN = [measures(list(range(length)), -2.0 * length) for length in range(3, 23)]


def rows(reward: float, completions: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Of four prompts, each with the same completions; the first is the pick."""
    row = {"value_pick": reward, "mean": reward, "completions": completions, "picks": completions[:1]}
    return [row | {"value_pick": reward + noise, "mean": reward} for noise in (-0.1, 0.0, 0.0, 0.1)]


def test_measures_of_a_completion() -> None:
    assert measures([5, 6, 5, 6, 5], -5 * math.log(8)) == pytest.approx(
        {"perplexity": 8.0, "distinct_2": 2 / 4, "length": 5}
    )
    assert math.isnan(measures([5], -1.0)["distinct_2"])


@pytest.mark.parametrize(
    ("aligned", "measure"),
    [
        (measures([7] * 10, -20.0), "distinct_2"),  # one repeated word
        (measures(list(range(60)), -120.0), "length"),
        (measures([1, 2], -4.0), "length"),
        (measures(list(range(10)), -90.0), "perplexity"),
        (measures(list(range(10)), -1.0), "perplexity"),
    ],
)
def test_a_median_that_few_frozen_completions_reach_is_outside(aligned: dict[str, float], measure: str) -> None:
    (outside,) = departures(rows(0.0, FROZEN), rows(1.0, [aligned])) or []
    assert outside["measure"] == measure and outside["median"] == aligned[measure]
    assert not outside["frozen_low"] <= outside["median"] <= outside["frozen_high"]


def test_text_like_the_frozen_models_and_a_reward_that_does_not_rise_raise_no_alarm() -> None:
    typical, repeated = FROZEN[10], measures([7] * 10, -20.0)
    assert departures(rows(0.0, FROZEN), rows(1.0, [typical])) == []
    assert departures(rows(0.0, FROZEN), rows(0.01, [repeated])) == []


@pytest.mark.parametrize(("gains", "is_sure"), [((0.5, -0.2, 0.4, 0.1), False), ((0.5, 0.2, 0.4, 0.1), True)])
def test_a_reward_rises_by_twice_its_standard_error(gains: tuple[float, ...], is_sure: bool) -> None:
    """0.20 with an error of 0.16, and 0.30 with one of 0.09."""
    base = [{"mean": reward} for reward in (0.0, 1.0, 2.0, 3.0)]
    aligned = [{"value_pick": row["mean"] + gain} for row, gain in zip(base, gains, strict=True)]
    assert rises(base, aligned) == is_sure


def test_text_at_a_lower_temperature_may_be_likelier_but_not_repeat_itself() -> None:
    likelier, unlikelier, repeated = (measures(list(range(10)), logprob) for logprob in (-1.0, -90.0, -1.0))
    repeated["distinct_2"] = 0.1
    departed = [
        departures(rows(0.0, FROZEN), rows(1.0, [aligned]), sharpened=True) or []
        for aligned in (likelier, unlikelier, repeated)
    ]
    assert [[part["measure"] for part in each] for each in departed] == [[], ["perplexity"], ["distinct_2"]]


def test_rows_without_measures_give_no_verdict() -> None:
    old = [{"value_pick": 1.0, "mean": 1.0}]
    assert departures(old, old) is None


def test_the_first_model_above_the_frozen_one_that_writes_like_it_is_chosen() -> None:
    typical, repeated, long = FROZEN[10], measures([7] * 10, -20.0), measures(list(range(60)), -120.0)
    exploiting, usual, low = rows(3.0, [repeated]), rows(2.0, [typical]), rows(0.01, [typical])
    frozen = rows(0.0, FROZEN)

    def first(*candidates: list[dict[str, Any]]) -> int:
        return first_usual(frozen, [(aligned, departures(frozen, aligned)) for aligned in candidates])

    assert first(exploiting, usual) == 1
    assert first(usual, exploiting) == 0
    assert first(exploiting, low) == 0  # nothing else is above the frozen model
    assert first(rows(3.0, [long]), usual) == 0  # a grader may want another length


@pytest.mark.slow(8)
def test_a_job_that_repeats_one_token_says_so(config: AlignConfig, tmp_path: Path) -> None:
    """The toy job's reward is how many of one token."""
    events: list[dict[str, Any]] = []
    wide = config.model_copy(update={"beam_width": 8, "num_successors": 16})
    result = job().execute(wide, tmp_path / "run", on_event=events.append)
    (alarm,) = [event for event in events if event["data"].get("code") == "over_optimization"]
    assert alarm["level"] == "warn" and "Over-optimisation" in alarm["message"]
    assert alarm["data"]["measures"] == result["over_optimization"]
    assert "distinct_2" in {part["measure"] for part in result["over_optimization"]}
