"""Which of an iteration's tilts is the best: rules about trials on held-out prompts (reconstruction)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from training.iro.diagnostics import mean_and_error, reward_statistics
from training.iro.over_optimization import distinct_2, perplexity
from training.iro.trials import Levels, best_trial, mean_reward, mended_trials, refused_trials, surely_above
from training.json_values import JsonObject

NONE = "none"  # the kind of a tilt that changes nothing
MOST_PERPLEXITY, LEAST_DISTINCT_2 = 1.1, 0.95  # of a tilt's text, times the frozen model's own
LIKELIER_LATER = 2.0  # times that perplexity, of a tilt that further rounds add to: it is sharpened at the end
STRONGER, MOST_STRONGER = 1.5, 2  # times the strength of a tilt, and how often
MUCH_MORE = 1.5  # times the gain of what is kept: by a tilt whose text is refused, of a grader that pays for such text


def trial_report(trials: Sequence[Trial], best: Trial | None) -> str:
    parts = [
        f"{trial.name}: {mean_and_error(trial.rewards)[0]:.3f} "
        f"(perplexity {perplexity(trial.rows):.1f}, distinct-2 {distinct_2(trial.rows):.2f})"
        for trial in trials
    ]
    chosen = best.name if best else "none, because none is surely better"
    return f"Tilts at one row, held-out reward: {'; '.join(parts)}. Chosen: {chosen}"


def distinct_trials(trials: Sequence[Trial], best: Trial | None) -> list[Trial]:
    """``trials`` without those of equal settings, which a round tries once and may list twice."""
    by_setting: dict[tuple[str, float, float, float], Trial] = {}
    for trial in [*trials, *(trial for trial in trials if trial is best)]:
        by_setting[trial.kind, trial.strength, trial.sharpness, trial.penalty] = trial
    return list(by_setting.values())


def trial_data(trial: Trial, best: Trial | None) -> JsonObject:
    """Reward at one row, nats from the frozen model, perplexity and distinct-2 of a trial."""
    return {
        "kind": trial.kind,
        "strength": trial.strength,
        "sharpness": trial.sharpness,
        "repetition_penalty": trial.penalty,
        **reward_statistics(trial.rewards),
        "kl": mean_kl(trial),
        "perplexity": perplexity(trial.rows),
        "distinct_2": distinct_2(trial.rows),
        "chosen": trial is best,
    }


class Limits(NamedTuple):
    """What a tilt keeps to, so that the reward does not rise by text that the frozen model never writes.

    ``most_kl``: mean nats of a completion from the frozen model; None: as many as it takes.
    """

    most_perplexity: float
    least_distinct_2: float
    most_kl: float | None = None

    @classmethod
    def of(cls, frozen: Sequence[JsonObject], most_kl: float | None = None) -> Limits:
        return cls(MOST_PERPLEXITY * perplexity(frozen), LEAST_DISTINCT_2 * distinct_2(frozen), most_kl)

    def before_cooling(self) -> Limits:
        """Of a tilt that is to be sharpened later, which makes its text likelier."""
        return self._replace(most_perplexity=LIKELIER_LATER * self.most_perplexity)

    def allow(self, trial: Trial) -> bool:
        return not (self.is_unlikely(trial) or self.repeats(trial) or self.is_far(trial))

    def is_unlikely(self, trial: Trial) -> bool:
        return perplexity(trial.rows) > self.most_perplexity

    def repeats(self, trial: Trial) -> bool:
        """Not where answers are single tokens, which have no distinct-2."""
        return distinct_2(trial.rows) < self.least_distinct_2

    def is_far(self, trial: Trial) -> bool:
        return self.most_kl is not None and mean_kl(trial) > self.most_kl


@dataclass(frozen=True)
class Trial:
    """A tilt at a strength, less a ``penalty`` on words that the response has, and then sharpened, on held-out prompts.
    ``rows``: what ``Validation.judge`` says of each prompt."""

    kind: str
    strength: float
    rows: list[JsonObject]
    sharpness: float = 0.0
    penalty: float = 0.0

    @property
    def name(self) -> str:
        parts = ["no tilt" if self.kind == NONE else f"{self.kind} at {self.strength:g}"]
        parts += [f"repetition penalty {self.penalty:g}"] if self.penalty else []
        parts += [f"temperature {1 / (1 + self.sharpness):.2g}"] if self.sharpness else []
        return ", ".join(parts)

    @property
    def rewards(self) -> list[float]:
        return [row["mean"] for row in self.rows]


def mean_kl(trial: Trial) -> float:
    """Nats of a completion from the frozen model."""
    return mean_and_error([row["kl"] for row in trial.rows])[0]


def next_trial(trials: Sequence[Trial], limits: Limits) -> tuple[str, float] | None:
    """Kind and strength that would tell most after ``trials``, going by that of the highest reward.

    Where its text is outside the limits, halfway from the strongest one of its kind that is not to the next; where it
    is the strongest of its kind, half as strong again. Else None.
    """
    best = max(trials, key=mean_reward)
    of_kind = sorted((trial for trial in trials if trial.kind == best.kind), key=lambda trial: trial.strength)
    outside = [trial.strength for trial in of_kind if not limits.allow(trial)]
    if best.strength in outside:
        inside = [trial.strength for trial in of_kind if trial.strength < min(outside)]
        return best.kind, (min(outside) + max(inside, default=0.0)) / 2
    return (best.kind, STRONGER * best.strength) if best is of_kind[-1] else None


def stronger_trials(
    trials: Sequence[Trial],
    base: Trial,
    tried: Callable[[str, float, float, float], Trial],
    limits: Limits,
    levels: Levels,
) -> list[Trial]:
    """The trial of the highest reward whose text is refused, if that is above all allowed ones, mended
    (``mended_trials``); and while it is above them, what it became with half as strong a tilt again, mended likewise.

    ``tried``: takes a kind, a strength, a sharpness and a penalty.
    """
    refused = [trial for trial in refused_trials(trials, base, limits) if not limits.is_far(trial)]
    if not refused:
        return []
    further, trial = list[Trial](), refused[0]
    reward = max(map(mean_reward, [base, *filter(limits.allow, trials)]))
    for stronger in range(1 + MOST_STRONGER):
        if stronger:
            trial = tried(trial.kind, STRONGER * trial.strength, trial.sharpness, trial.penalty)
            further.append(trial)
        further += mended_trials(trial, partial(tried, trial.kind, trial.strength), limits, levels)
        trial = further[-1] if further else trial
        if not limits.allow(trial) or mean_reward(trial) <= reward:
            break
        reward = mean_reward(trial)
    return further


def sharpened_trials(trials: Sequence[Trial], base: Trial, limits: Limits) -> list[Trial]:
    """The trials to be sharpened: the best one; where none is surely better than the policy, the policy as well as the
    tilt of the highest reward, which may be better at a lower temperature alone."""
    if best := best_trial(trials, base, limits):
        return [best]
    highest = max([base, *filter(limits.allow, trials)], key=mean_reward)
    return [base] if highest is base else [base, highest]


class Tried(NamedTuple):
    """The ``trials`` of a round, the policy ``base`` that it began with and the one that it ``kept``, on the same
    prompts, and the limits of their text."""

    base: Trial
    trials: Sequence[Trial]
    kept: Trial
    limits: Limits


def refused_trial(rounds: Sequence[Tried]) -> Trial | None:
    """Of all rounds, the trial of the highest reward, where its text is outside the limits and the grader pays for such
    text: its reward is surely above that of the policy that the last round kept, by half as much as that one gained.
    Three standard errors: the highest of many trials is above by two often enough by luck."""
    base, kept, limits = rounds[0].base, rounds[-1].kept, rounds[-1].limits
    near = [trial for tried in rounds for trial in tried.trials if not limits.is_far(trial)]
    if not near:
        return None
    highest = max(near, key=mean_reward)
    gain, kept_gain = (mean_reward(trial) - mean_reward(base) for trial in (highest, kept))
    pays = surely_above(highest, kept, 3.0) and gain >= MUCH_MORE * kept_gain
    return highest if pays and not limits.allow(highest) else None


def refusal_report(refused: Trial, tried: Tried) -> str:
    kept, limits = tried.kept, tried.limits
    if limits.repeats(refused):
        text = f"repeats itself: distinct-2 {distinct_2(refused.rows):.2f}, least {limits.least_distinct_2:.2f}"
    else:
        text = f"is unlikely: perplexity {perplexity(refused.rows):.1f}, most {limits.most_perplexity:.1f}"
    return (
        f"The grader prefers text that the frozen model hardly writes: a reward of {mean_reward(refused):.3f} by "
        f"{refused.name}, which was refused because its text {text}; {mean_reward(kept):.3f} by what was kept. "
        "Read some completions: a request with a higher search.strength may write like that"
    )
