"""Which of a job's trials is the best: rules that know of each its rewards, and whether its text keeps to limits
(reconstruction)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from training.iro.diagnostics import mean_and_error, ranking_mean

SHARPNESS = (0.5, 1.0, 2.0)  # temperatures 2/3, 1/2 and 1/3
PENALTIES = (1.0, 2.0, 3.0)  # nats on words that a response has already


class Levels(NamedTuple):
    """What a policy is tried at, rising."""

    sharpness: Sequence[float] = SHARPNESS
    penalties: Sequence[float] = PENALTIES


class Rewarded(Protocol):
    @property
    def rewards(self) -> list[float]:
        """The mean of each held-out prompt's answers."""


class Adjusted(Rewarded, Protocol):
    @property
    def sharpness(self) -> float:
        """The inverse of the temperature, less 1."""

    @property
    def penalty(self) -> float:
        """Nats on words that the response has already."""


T = TypeVar("T", bound=Rewarded)
A = TypeVar("A", bound=Adjusted)
Judged = TypeVar("Judged", bound=Rewarded, contravariant=True)


class TextLimits(Protocol[Judged]):
    """What the text of trials is to keep to."""

    def allow(self, trial: Judged, /) -> bool: ...

    def repeats(self, trial: Judged, /) -> bool:
        """Whether the text repeats itself more than the limits allow."""

    def is_unlikely(self, trial: Judged, /) -> bool:
        """Whether the text is less likely than the limits allow."""


def mean_reward(trial: Rewarded) -> float:
    """-∞ where the grader gave none: such a trial is never the best."""
    return ranking_mean(trial.rewards)


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


def refused_trials(trials: Sequence[T], base: T, limits: TextLimits[T]) -> list[T]:
    """By falling reward, the trials whose text is outside the limits and whose reward is above all allowed ones."""
    allowed = [base, *(trial for trial in trials if limits.allow(trial))]
    highest = max(map(mean_reward, allowed))
    refused = [trial for trial in trials if not limits.allow(trial) and mean_reward(trial) > highest]
    return sorted(refused, key=mean_reward, reverse=True)


def mended_trials(start: A, tried: Callable[[float, float], A], limits: TextLimits[A], levels: Levels) -> list[A]:
    """``start`` with a penalty that rises while its text repeats itself, and at a temperature that falls while the text
    is unlikely, up to the first trial whose text is neither.

    ``tried``: takes a sharpness and a penalty. A penalty makes a text unlikelier, a lower temperature likelier.
    """
    trials, trial = list[A](), start
    while (repeats := limits.repeats(trial)) or limits.is_unlikely(trial):
        next_level = higher(levels.penalties, trial.penalty) if repeats else higher(levels.sharpness, trial.sharpness)
        if next_level is None:
            break
        trial = tried(trial.sharpness, next_level) if repeats else tried(next_level, trial.penalty)
        trials.append(trial)
    return trials


def sharper_trials(start: A, tried: Callable[[float, float], A], limits: TextLimits[A], levels: Levels) -> list[A]:
    """``start`` at ever lower temperatures, with a penalty that rises while its text repeats itself. Up to the first
    temperature that does not raise the reward, or whose text repeats itself at the highest penalty."""
    trials, trial = list[A](), start
    for sharpness in levels.sharpness:
        if sharpness <= start.sharpness:
            continue
        reward, trial = mean_reward(trial), tried(sharpness, trial.penalty)
        trials.append(trial)
        while limits.repeats(trial) and (penalty := higher(levels.penalties, trial.penalty)):
            trial = tried(sharpness, penalty)
            trials.append(trial)
        if mean_reward(trial) <= reward or limits.repeats(trial):
            break
    return trials


def higher(levels: Sequence[float], level: float) -> float | None:
    """The next of rising ``levels``."""
    return next((each for each in levels if each > level), None)
