"""Which of a job's trials is the best: rules that know of each its rewards, and whether its text keeps to limits
(reconstruction)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from training.iro.diagnostics import mean_and_error

SHARPNESS = (0.5, 1.0, 2.0)  # of the best tilt, tried while the reward rises: temperatures 2/3, 1/2 and 1/3
PENALTIES = (1.0, 2.0, 3.0)  # nats on words that a response has already, tried while its text repeats itself


class Rewarded(Protocol):
    @property
    def rewards(self) -> list[float]:
        """The mean of each held-out prompt's answers."""


T = TypeVar("T", bound=Rewarded)
Judged = TypeVar("Judged", bound=Rewarded, contravariant=True)


class TextLimits(Protocol[Judged]):
    """What the text of trials is to keep to."""

    def allow(self, trial: Judged, /) -> bool: ...

    def repeats(self, trial: Judged, /) -> bool:
        """Whether the text repeats itself more than the limits allow."""


def mean_reward(trial: Rewarded) -> float:
    return mean_and_error(trial.rewards)[0]


def surely_above(trial: Rewarded, other: Rewarded, errors: float = 2.0) -> bool:
    """Whether the reward is above the other's by so many standard errors of the paired difference."""
    gain, error = mean_and_error([new - old for new, old in zip(trial.rewards, other.rewards, strict=True)])
    return gain > errors * error


def best_trial(trials: Sequence[T], base: T, limits: TextLimits[T]) -> T | None:
    """The trial of the highest reward whose text keeps to the limits.

    None unless it is above ``base``, the policy of the rollouts, by twice the standard error of the paired difference.
    """
    allowed = [trial for trial in trials if limits.allow(trial)]
    if not allowed:
        return None
    best = max(allowed, key=mean_reward)
    return best if surely_above(best, base) else None


def sharper_trials(start: T, tried: Callable[[float], T], limits: TextLimits[T]) -> list[T]:
    """``start`` ever sharper, up to the first trial that does not raise its reward, or that repeats itself."""
    trials, reward = [], mean_reward(start)
    for sharpness in SHARPNESS:
        trials.append(tried(sharpness))
        before, reward = reward, mean_reward(trials[-1])
        if reward <= before or limits.repeats(trials[-1]):
            break
    return trials


def repeating_trial(trials: Sequence[T], base: T, limits: TextLimits[T]) -> T | None:
    """The trial of the highest reward among those whose text repeats itself, where no allowed one has a higher one."""
    repeating = [trial for trial in trials if limits.repeats(trial)]
    if not repeating:
        return None
    highest = max(repeating, key=mean_reward)
    allowed = [base, *(trial for trial in trials if limits.allow(trial))]
    return highest if mean_reward(highest) > max(map(mean_reward, allowed)) else None


def penalised_trials(
    levels: Sequence[float],
    tried: Callable[[float, float], T],
    limits: TextLimits[T],
    penalties: Sequence[float] = PENALTIES,
) -> list[T]:
    """A policy at ever lower temperatures, with a penalty on words that the response has already, which rises while the
    text repeats itself. Up to the first temperature that does not raise the reward, or whose text repeats itself at
    the highest penalty. A penalty makes a text unlikelier, a lower temperature likelier.

    ``levels`` of sharpness and ``penalties`` rise. ``tried``: takes a sharpness and a penalty.
    """
    trials: list[T] = []
    reward, penalties = -math.inf, [*penalties]
    for sharpness in levels:
        trials.append(tried(sharpness, penalties[0]))
        while limits.repeats(trials[-1]) and len(penalties) > 1:
            del penalties[0]
            trials.append(tried(sharpness, penalties[0]))
        before, reward = reward, mean_reward(trials[-1])
        if reward <= before or limits.repeats(trials[-1]):
            break
    return trials
