"""Which trial of a tilt is kept, and which further ones are made."""

from __future__ import annotations

import math

import pytest

from training.iro.over_optimization import perplexity
from training.iro.tilt_trials import (
    Limits,
    Trial,
    Tried,
    next_trial,
    refusal_report,
    refused_trial,
    sharpened_trials,
    stronger_trials,
)
from training.iro.trials import Levels, best_trial, mended_trials, refused_trials, sharper_trials


def trial(
    kind: str,
    rewards: list[float],
    logprob: float = -30.0,
    strength: float = 1.0,
    distinct: float = 1.0,
    setting: tuple[float, float] = (0.0, 0.0),
    kl: float = 0.0,
) -> Trial:
    completions = [{"distinct_2": distinct}, {"distinct_2": math.nan}]
    shared = {"logprob": logprob, "tokens": 10.0, "completions": completions, "kl": kl}
    rows = [shared | {"mean": reward} for reward in rewards]
    return Trial(kind, strength, rows, *setting)


BASE = trial("none", [0.0, 0.2, 0.1, 0.3])
LIMITS = Limits.of(BASE.rows)


def test_perplexity_is_that_of_all_tokens_together() -> None:
    rows = [{"logprob": -3.0, "tokens": 1.0}, {"logprob": -1.0, "tokens": 3.0}]
    assert perplexity(rows) == pytest.approx(math.e)


def test_the_tilt_of_the_highest_reward_is_kept() -> None:
    better, best = trial("words", [0.5, 0.7, 0.6, 0.8]), trial("states", [0.8, 0.9, 1.0, 1.0])
    assert best_trial([better, best], BASE, LIMITS) is best


@pytest.mark.parametrize("first", [0, 1])
def test_a_trial_without_a_reward_is_never_the_best_one(first: int) -> None:
    ungraded, good = trial("words", [math.nan] * 4), trial("bias", [0.5, 0.7, 0.6, 0.8], strength=4)
    trials = [ungraded, good] if first == 0 else [good, ungraded]
    assert best_trial(trials, BASE, LIMITS) is good
    assert next_trial(trials, LIMITS) == ("bias", 6.0)
    assert sharpened_trials(trials, BASE, LIMITS) == [good]
    refused = trial("states", [0.9] * 4, -40.0)
    assert refused_trials([*trials, refused], trial("none", [math.nan] * 4), LIMITS) == [refused]


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


def test_a_tilt_that_is_further_than_a_job_allows_is_weakened_and_not_mended() -> None:
    near, far = trial("bias", [0.5] * 4, strength=4, kl=6.0), trial("bias", [0.9] * 4, strength=8, kl=14.0)
    assert best_trial([near, far], BASE, LIMITS) is far
    limits = Limits.of(BASE.rows, most_kl=10.0)
    assert best_trial([near, far], BASE, limits) is near
    assert next_trial([near, far], limits) == ("bias", 6.0)

    def untried(*_: object) -> Trial:
        raise AssertionError("no penalty and no temperature brings it nearer")

    assert stronger_trials([near, far], BASE, untried, limits, Levels()) == []
    assert mended_trials(far, untried, limits, Levels()) == []
    assert refused_trial([Tried(BASE, [near, far], near, limits)]) is None  # its text is like the frozen model's
    unlikely = trial("bias", [0.8] * 4, -40.0, strength=6, kl=9.0)
    tried = stronger_trials([near, far, unlikely], BASE, lambda *_: far, limits, Levels())
    assert tried == [far]  # what the unlikely one became at a lower temperature


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


Adjusted = dict[tuple[float, float], tuple[float, float, float]]


def of_settings(tried: Adjusted) -> dict[tuple[float, float], Trial]:
    """By sharpness and penalty: of a reward, distinct-2, and log-probability of ten tokens."""
    return {s: trial("states", [r] * 4, logprob, distinct=d, setting=s) for s, (r, d, logprob) in tried.items()}


@pytest.mark.parametrize(
    ("start", "tried"),
    [
        ((1.0, -30.3), {}),
        ((0.9, -30.3), {(0.0, 1.0): (0.7, 1.0, -30.3)}),
        ((1.0, -32.5), {(0.5, 0.0): (0.7, 1.0, -32.5), (1.0, 0.0): (0.7, 1.0, -30.3)}),
        ((0.9, -32.5), {(0.0, 1.0): (0.7, 0.9, -32.5), (0.0, 2.0): (0.7, 1.0, -32.5), (0.5, 2.0): (0.7, 1.0, -30.3)}),
        ((1.0, -32.5), {(0.5, 0.0): (0.7, 0.9, -29.0), (0.5, 1.0): (0.7, 1.0, -30.3)}),
        ((0.9, -30.3), {(0.0, p): (0.7, 0.9, -30.3) for p in (1.0, 2.0, 3.0)}),
        ((1.0, -40.0), {(s, 0.0): (0.7, 1.0, -32.5) for s in (0.5, 1.0, 2.0)}),
    ],
)
def test_a_refused_trial_is_penalised_while_it_repeats_itself_and_sharpened_while_it_is_unlikely(
    start: tuple[float, float], tried: Adjusted
) -> None:
    """``start``: distinct-2 and log-probability; ``tried``: in the order in which they are."""
    trials, (distinct, logprob) = of_settings(tried), start
    mended = mended_trials(
        trial("states", [0.9] * 4, logprob, distinct=distinct), lambda *s: trials.pop(s), LIMITS, Levels()
    )
    assert [(each.sharpness, each.penalty) for each in mended] == list(tried) and not trials


@pytest.mark.parametrize(
    "tried",
    [
        {(1.0, 0.0, 1.0): (0.8, 0.9), (1.0, 0.0, 2.0): (0.6, 1.0)},
        {(1.0, 0.0, 1.0): (0.8, 1.0), (1.5, 0.0, 1.0): (0.8, 1.0)},
        {(1.0, 0.0, p): (0.8, 0.9) for p in (1.0, 2.0, 3.0)},
        {(1.0, 0.0, 2.0): (0.8, 1.0)} | {(1.5, 0.0, p): (1.0, 0.9) for p in (2.0, 3.0)},
        {(1.0, 0.0, 1.0): (0.8, 1.0), (1.5, 0.0, 1.0): (0.9, 0.9), (1.5, 0.0, 2.0): (0.9, 1.0)}
        | {(2.25, 0.0, 2.0): (1.0, 1.0)},
    ],
)
def test_a_mended_tilt_is_tried_stronger_while_its_reward_rises(
    tried: dict[tuple[float, float, float], tuple[float, float]],
) -> None:
    """``tried``: reward and distinct-2 by strength, sharpness and penalty, in the order in which they are tried; 0.7 is
    the highest reward of an allowed trial."""
    first = next(iter(tried))[2]
    start = trial("states", [0.9] * 4, distinct=0.9, setting=(0.0, first - 1))
    known, names = dict(tried), list[tuple[float, float, float]]()

    def trial_of(kind: str, *setting: float) -> Trial:
        strength, sharpness, penalty = setting
        reward, distinct = known[strength, sharpness, penalty]
        names.append((strength, sharpness, penalty))
        return trial(kind, [reward] * 4, -30.0, strength, distinct, (sharpness, penalty))

    allowed = trial("words", [0.7] * 4)
    stronger = stronger_trials([start, allowed], BASE, trial_of, LIMITS, Levels())
    assert names == list(tried) == [(each.strength, each.sharpness, each.penalty) for each in stronger]
    assert stronger_trials([start, allowed], BASE, trial_of, LIMITS, Levels(penalties=())) == []
    assert stronger_trials([allowed], BASE, trial_of, LIMITS, Levels()) == []


@pytest.mark.parametrize(
    ("start", "tried"),
    [
        ((0.0, 0.0), {(s, 0.0): (0.6 + s / 10, 1.0, -30.0) for s in (0.5, 1.0, 2.0)}),
        ((0.0, 0.0), {(0.5, 0.0): (0.7, 1.0, -30.0), (1.0, 0.0): (0.7, 1.0, -30.0)}),
        ((0.5, 2.0), {(1.0, 2.0): (0.7, 1.0, -30.0), (2.0, 2.0): (0.8, 1.0, -30.0)}),
        ((0.0, 0.0), {(0.5, 0.0): (0.8, 0.9, -30.0), (0.5, 1.0): (0.7, 1.0, -30.0), (1.0, 1.0): (0.6, 1.0, -30.0)}),
        ((1.0, 1.0), {(2.0, p): (0.8, 0.9, -30.0) for p in (1.0, 2.0, 3.0)}),
        ((0.0, 0.0), {(0.5, p): (0.8, 0.9, -30.0) for p in (0.0, 1.0, 2.0, 3.0)}),
    ],
)
def test_a_temperature_falls_while_the_reward_rises_and_a_penalty_rises_while_the_text_repeats_itself(
    start: tuple[float, float], tried: Adjusted
) -> None:
    trials = of_settings(tried)
    sharper = sharper_trials(trial("states", [0.6] * 4, setting=start), lambda *s: trials.pop(s), LIMITS, Levels())
    assert [(each.sharpness, each.penalty) for each in sharper] == list(tried) and not trials


def test_no_more_is_tried_than_the_model_can_apply() -> None:
    repetitive, unlikely = trial("bias", [0.9] * 4, distinct=0.9), trial("bias", [0.9] * 4, -40.0)
    likely = of_settings({(0.5, 0.0): (0.9, 0.9, -30.0)})
    assert not mended_trials(repetitive, lambda *s: likely[s], LIMITS, Levels(penalties=()))
    assert not mended_trials(unlikely, lambda *s: likely[s], LIMITS, Levels(sharpness=()))
    assert len(sharper_trials(unlikely, lambda *s: likely[s], LIMITS, Levels(penalties=()))) == 1
    assert not sharper_trials(unlikely, lambda *s: likely[s], LIMITS, Levels(sharpness=()))


def test_a_trial_is_refused_where_its_reward_is_above_all_allowed_ones() -> None:
    """By falling reward."""
    various, repetitive = trial("bias", [0.6] * 4), trial("states", [0.9] * 4, -32.5, distinct=0.9)
    unlikely = trial("words", [1.0] * 4, -32.5)
    assert refused_trials([various, repetitive], BASE, LIMITS) == [repetitive]
    assert refused_trials([various, repetitive, unlikely], BASE, LIMITS) == [unlikely, repetitive]
    assert refused_trials([trial("bias", [1.0] * 4), repetitive, unlikely], BASE, LIMITS) == []
    assert refused_trials([trial("bias", [0.1] * 4, distinct=0.9)], BASE, LIMITS) == []


def test_the_policy_is_sharpened_where_no_tilt_is_surely_better_than_it() -> None:
    """And the tilt of the highest reward: it may be surely better at a lower temperature."""
    better, best = trial("words", [0.5, 0.7, 0.6, 0.8]), trial("states", [0.8, 0.9, 1.0, 1.0])
    lucky, unlikely = trial("words", [0.9, 0.0, 0.0, 0.2]), trial("states", [0.9] * 4, -32.5)
    assert sharpened_trials([better, best, unlikely], BASE, LIMITS) == [best]
    assert sharpened_trials([lucky, unlikely], BASE, LIMITS) == [BASE, lucky]
    assert sharpened_trials([trial("words", [0.1] * 4), unlikely], BASE, LIMITS) == [BASE]


def test_a_trial_is_named_by_all_that_it_tries() -> None:
    rows = BASE.rows
    assert Trial("states", 1.5, rows).name == "states at 1.5"
    assert Trial("none", 0.0, rows, 0.5).name == "no tilt, temperature 0.67"
    assert Trial("bias", 8.0, rows, 1.0, 2.0).name == "bias at 8, repetition penalty 2, temperature 0.5"


def test_a_tilt_that_is_not_surely_better_is_not_kept() -> None:
    assert best_trial([trial("words", [0.9, 0.0, 0.0, 0.2])], BASE, LIMITS) is None


@pytest.mark.parametrize(
    ("rewards", "warns"),
    [
        ([0.9, 1.1, 1.0, 1.2], True),
        ([0.7, 0.9, 0.8, 1.0], False),
        ([0.6, 0.8, 0.7, 0.9], False),
        ([0.9, 0.0, 0.7, 2.6], False),
    ],
)
def test_a_grader_that_pays_for_text_outside_the_limits_is_reported(rewards: list[float], warns: bool) -> None:
    """Surely, and half as much again as what the last round kept has gained over the frozen model in all rounds."""
    first, kept = trial("words", [0.3] * 4, -30.3), trial("words", [0.5, 0.7, 0.6, 0.8], -30.3)
    unlikely = trial("words", rewards, -32.5, strength=2)
    second = Tried(first, [kept], kept, LIMITS)
    assert refused_trial([Tried(BASE, [first, unlikely], first, LIMITS), second]) is (unlikely if warns else None)
    assert refused_trial([Tried(BASE, [first, kept], first, LIMITS)]) is None
    assert "by words at 2, which was refused because its text is unlikely" in refusal_report(unlikely, second)
    repeats = trial("bias", [2.0] * 4, distinct=0.6)
    assert "its text repeats itself: distinct-2 0.60, least 0.95" in refusal_report(repeats, second)
