"""Which trial of a tilt is kept, and which further ones are made."""

from __future__ import annotations

import math

import pytest

from training.iro.over_optimization import perplexity
from training.iro.tilt_trials import Limits, Trial, Tried, next_trial, refusal_report, refused_trial, starts
from training.iro.trials import (
    PENALTIES,
    SHARPNESS,
    best_trial,
    penalised_trials,
    repeating_trial,
    sharper_trials,
)


def trial(
    kind: str, rewards: list[float], logprob: float = -30.0, strength: float = 1.0, distinct: float = 1.0
) -> Trial:
    completions = [{"distinct_2": distinct}, {"distinct_2": math.nan}]
    rows = [{"mean": reward, "logprob": logprob, "tokens": 10.0, "completions": completions} for reward in rewards]
    return Trial(kind, strength, rows)


BASE = trial("none", [0.0, 0.2, 0.1, 0.3])
LIMITS = Limits.of(BASE.rows)


def test_perplexity_is_that_of_all_tokens_together() -> None:
    rows = [{"logprob": -3.0, "tokens": 1.0}, {"logprob": -1.0, "tokens": 3.0}]
    assert perplexity(rows) == pytest.approx(math.e)


def test_the_tilt_of_the_highest_reward_is_kept() -> None:
    better, best = trial("words", [0.5, 0.7, 0.6, 0.8]), trial("states", [0.8, 0.9, 1.0, 1.0])
    assert best_trial([better, best], BASE, LIMITS) is best


def test_a_tilt_whose_text_is_unlikely_is_not_kept() -> None:
    """Perplexity 3 % and 28 % above the frozen model's own."""
    likely, unlikely = trial("words", [0.5, 0.7, 0.6, 0.8], -30.3), trial("states", [0.9] * 4, -32.5)
    assert best_trial([likely, unlikely], BASE, LIMITS) is likely
    assert best_trial([unlikely], BASE, LIMITS) is None


def test_a_tilt_whose_text_repeats_itself_is_not_kept() -> None:
    """Bigrams of a text that differ: 4 % and 6 % fewer than in the frozen model's."""
    various, repetitive = trial("bias", [0.5] * 4, distinct=0.96), trial("bias", [0.9] * 4, distinct=0.94, strength=2)
    assert best_trial([various, repetitive], BASE, LIMITS) is various
    assert next_trial([various, repetitive], LIMITS) == ("bias", 1.5)
    single = trial("bias", [0.9] * 4, distinct=math.nan)
    assert best_trial([single], BASE, Limits.of(single.rows)) is single


@pytest.mark.parametrize(
    ("rising", "expected"),
    [
        ([(0.5, -30.3), (1.0, -32.5)], ("states", 0.75)),
        ([(1.0, -32.5)], ("states", 0.5)),
        ([(0.5, -30.0), (0.75, -31.5), (1.0, -32.5)], ("states", 0.625)),
        ([(0.5, -30.3), (1.0, -30.3)], ("states", 1.5)),
        ([(1.0, -30.3), (0.5, -30.3)], None),
    ],
)
def test_a_further_strength_is_tried_about_that_of_the_highest_reward(
    rising: list[tuple[float, float]], expected: tuple[str, float] | None
) -> None:
    """``rising``: strengths, by rising reward, and log-probabilities of ten tokens: -30.95 is allowed."""
    states = [trial("states", [0.6 + n / 10] * 4, p, s) for n, (s, p) in enumerate(rising)]
    assert next_trial([trial("words", [0.5] * 4), *states], LIMITS) == expected


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([(0.7, 1.0), (0.8, 1.0), (0.9, 1.0)], [0.5, 1.0, 2.0]),
        ([(0.7, 1.0), (0.6, 1.0), (0.9, 1.0)], [0.5, 1.0]),
        ([(0.5, 1.0)], [0.5]),
        ([(0.7, 0.9), (0.8, 1.0)], [0.5]),
    ],
)
def test_a_tilt_is_sharpened_while_its_reward_rises_inside_the_limits(
    trials: list[tuple[float, float]], expected: list[float]
) -> None:
    """``trials``: reward and distinct-2 of each sharpness that could be tried; 0.6 is the tilt's own reward."""
    of_sharpness = {
        s: trial("words", [reward] * 4, distinct=d) for s, (reward, d) in zip(SHARPNESS, trials, strict=False)
    }
    sharper = sharper_trials(trial("words", [0.6] * 4), of_sharpness.__getitem__, LIMITS)
    assert sharper == [of_sharpness[sharpness] for sharpness in expected]


def test_an_unlikely_tilt_of_the_highest_reward_is_sharpened_too() -> None:
    """Lower temperatures make a text likelier; they make none less repetitive."""
    likely, unlikely = trial("words", [0.6] * 4), trial("states", [0.9] * 4, -32.5)
    assert starts([likely, unlikely], BASE, LIMITS) == [likely, unlikely]
    assert starts([unlikely], BASE, LIMITS) == [BASE, unlikely]
    assert starts([likely, trial("words", [0.5] * 4, -32.5)], BASE, LIMITS) == [likely]
    assert starts([likely, trial("bias", [0.9] * 4, -32.5, distinct=0.9)], BASE, LIMITS) == [likely]
    assert starts([trial("words", [0.1] * 4, -32.5)], BASE, LIMITS) == [BASE]


def test_a_tilt_that_repeats_itself_is_penalised_where_its_reward_is_above_all_allowed_ones() -> None:
    various, repetitive = trial("bias", [0.6] * 4), trial("states", [0.9] * 4, -32.5, distinct=0.9)
    assert repeating_trial([various, repetitive], BASE, LIMITS) is repetitive
    assert repeating_trial([various, trial("words", [1.0] * 4, -32.5), repetitive], BASE, LIMITS) is repetitive
    assert repeating_trial([trial("bias", [1.0] * 4), repetitive], BASE, LIMITS) is None
    assert repeating_trial([trial("bias", [0.1] * 4, distinct=0.9)], BASE, LIMITS) is None
    assert repeating_trial([various, trial("words", [1.0] * 4, -32.5)], BASE, LIMITS) is None


@pytest.mark.parametrize(
    "tried",
    [
        {(0.0, 1.0): (0.7, 1.0), (0.5, 1.0): (0.9, 1.0), (1.0, 1.0): (0.8, 1.0)},
        {(0.0, 1.0): (0.7, 0.9), (0.0, 2.0): (0.6, 1.0), (0.5, 2.0): (0.9, 0.9), (0.5, 3.0): (0.5, 1.0)},
        {(0.0, 1.0): (0.7, 1.0), (0.5, 1.0): (0.9, 0.9), (0.5, 2.0): (0.8, 0.9), (0.5, 3.0): (0.8, 0.9)},
    ],
)
def test_a_penalty_rises_while_a_text_repeats_itself_and_the_temperature_falls_while_the_reward_rises(
    tried: dict[tuple[float, float], tuple[float, float]],
) -> None:
    """``tried``: by sharpness and penalty, in the order in which they are tried, reward and distinct-2."""
    trials = {place: trial("states", [reward] * 4, distinct=d) for place, (reward, d) in tried.items()}
    assert PENALTIES == (1.0, 2.0, 3.0)
    penalised = penalised_trials([0.0, 0.5, 1.0], lambda *place: trials[place], LIMITS)
    assert penalised == list(trials.values())


def test_a_trial_is_named_by_all_that_it_tries() -> None:
    rows = BASE.rows
    assert Trial("states", 1.5, rows).name == "states at 1.5"
    assert Trial("none", 0.0, rows, 0.5).name == "no tilt, temperature 0.67"
    assert Trial("bias", 8.0, rows, 1.0, 2.0).name == "bias at 8, repetition penalty 2, temperature 0.5"


def test_a_tilt_that_is_not_surely_better_is_not_kept() -> None:
    assert best_trial([trial("words", [0.9, 0.0, 0.0, 0.2])], BASE, LIMITS) is None


@pytest.mark.parametrize(
    ("rewards", "warns"), [([0.9, 1.1, 1.0, 1.2], True), ([0.6, 0.8, 0.7, 0.9], False), ([0.9, 0.0, 0.7, 2.6], False)]
)
def test_a_grader_that_pays_for_text_outside_the_limits_is_reported(rewards: list[float], warns: bool) -> None:
    """Surely, and half as much again as what the last round kept has gained."""
    first, kept = trial("words", [0.3] * 4, -30.3), trial("words", [0.5, 0.7, 0.6, 0.8], -30.3)
    unlikely = trial("words", rewards, -32.5, strength=2)
    second = Tried(first, [kept], kept, LIMITS)
    assert refused_trial([Tried(BASE, [first, unlikely], first, LIMITS), second]) is (unlikely if warns else None)
    assert refused_trial([Tried(BASE, [first, kept], first, LIMITS)]) is None
    assert "by words at 2, which was refused because its text is unlikely" in refusal_report(unlikely, second)
    repeats = trial("bias", [2.0] * 4, distinct=0.6)
    assert "its text repeats itself: distinct-2 0.60, least 0.95" in refusal_report(repeats, second)
