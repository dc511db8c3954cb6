"""What the rewards of a few rollouts say to do: one word for programs, one sentence for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from iro_server.jobs.estimates import statistics
from iro_server.jobs.estimates.statistics import Interval, Repeats, Rewards

Word = Literal["go", "more_rollouts", "constant_reward", "flaky_grader", "nothing_to_choose_from"]
MOST_UNGRADABLE = 0.5  # as in a job, which fails where more of its first rollouts get no reward
LEAST_RELIABILITY = 0.5
MOST_EQUAL = 0.8  # of prompts with equal rewards, beyond which a job would learn from too few
LEAST_PROMPTS = 3  # for an interval; as many as a job takes at least that has no validation file
LENGTH_HINT = ". Set max_tokens, so that an answer takes less time, or raise the server's IRO_ESTIMATE_SECONDS"
SHOWING = 16  # different prompts of a file, of which a job has enough left to show a gain on


@dataclass(frozen=True)
class Verdict:
    word: Word
    sentence: str


def judge(
    rewards: Rewards,
    repeats: Repeats,
    expected: Interval | None,
    error: str | None,
    rows: int,
    sampling_errors: Sequence[str] = (),
) -> Verdict:
    """``expected``: the gain; None where nothing was graded. ``error``: what the grader said of a completion that it
    could not grade. ``rows``: how many the training file has. ``sampling_errors``: why prompts could not be sampled,
    one of each, which the sentence ends with."""
    verdict = _judged(rewards, repeats, expected, error, rows, bool(sampling_errors))
    if not sampling_errors:
        return verdict
    count = len(sampling_errors)
    unsampled = "1 prompt" if count == 1 else f"{count} prompts"
    reason = first_reason(sampling_errors).removesuffix(".")
    return replace(verdict, sentence=f"{verdict.sentence} {unsampled} could not be sampled, the first: {reason}.")


def first_reason(sampling_errors: Sequence[str]) -> str:
    """The first of them, and what to change where the answer took too long."""
    return sampling_errors[0] + LENGTH_HINT * ("ReadTimeout" in sampling_errors[0])


def _judged(
    rewards: Rewards, repeats: Repeats, expected: Interval | None, error: str | None, rows: int, any_unsampled: bool
) -> Verdict:
    values = statistics.gradable(rewards)
    total = sum(map(len, rewards))
    failed = round(statistics.ungradable_share(rewards) * total)
    if failed > MOST_UNGRADABLE * total or expected is None:
        message = f"The grader gave no reward to {failed} of {total} completions, so a job would fail: {error}"
        return Verdict("flaky_grader", message)
    flat = [reward for of_prompt in values for reward in of_prompt]
    if statistics.all_equal(flat):
        return Verdict("constant_reward", _constant(flat))
    within, equal = statistics.within_prompt_variance(rewards), statistics.equal_share(rewards)
    if equal == 1.0:
        message = (
            f"All completions of a prompt get the same reward on each of {len(values)} prompts: no answer is better "
            "than another, so there is nothing to choose from. Have the grader tell answers to one prompt apart, by "
            "partial credit, or raise temperature or max_tokens."
        )
        return Verdict("nothing_to_choose_from", message)
    if repeats.disagreement and (reliability := repeats.reliability(within)) < LEAST_RELIABILITY:
        message = (
            f"The grader contradicts itself: asked twice about the same {repeats.pairs} completions it differs on "
            f"{repeats.disagreement:.0%}, and {1 - reliability:.0%} of the variance within a prompt is its own noise. "
            "Have it decide the same each time: fix its seed, set a judge's temperature to 0, or average calls."
        )
        return Verdict("flaky_grader", message)
    if len(values) < LEAST_PROMPTS:
        few = _few_rows(rows) if rows < LEAST_PROMPTS else _few_graded(len(values), any_unsampled)
        return Verdict("more_rollouts", few)
    if equal > MOST_EQUAL:
        return Verdict("more_rollouts", _more(len(values), equal, max(map(len, values))))
    if expected.low <= 0:
        return Verdict("more_rollouts", _few_prompts(expected, len(values), equal))
    return Verdict("go", _go(expected, len(values), repeats))


def _constant(flat: list[float]) -> str:
    return (
        f"The reward is always {flat[0]:g}, for each of {len(flat)} completions, so a job would learn nothing. Read "
        "the sample completions: if some are good, the grader does not see it (its field names, its parsing); if none "
        "is, give partial credit, put examples into the prompts, raise max_tokens, or take easier prompts."
    )


def _few_rows(rows: int) -> str:
    return (
        f"The training file has {'1 row' if rows == 1 else f'{rows} rows'}, too few to say more: a job takes "
        f"{LEAST_PROMPTS} different prompts at least, with a validation file 2, and {SHOWING} to show a gain. Add "
        "prompts."
    )


def _few_graded(prompts: int, any_unsampled: bool) -> str:
    graded = f"Only {'1 prompt was' if prompts == 1 else f'{prompts} prompts were'} graded"
    if any_unsampled:
        return f"{graded}, too few to say more."
    return (
        f"{graded} in the time that an estimate has, too few to say more: the sampling or the grader is slow. Lower "
        "max_tokens, speed up the grader, or raise the server's IRO_ESTIMATE_SECONDS."
    )


def _more(prompts: int, equal: float, rollouts: int) -> str:
    """``equal``: above ``MOST_EQUAL``, below 1. The job may already have as many rollouts as are needed."""
    differing = round((1 - equal) * prompts)
    needed = math.ceil(math.log(0.5) / math.log(equal)) * rollouts
    return (
        f"Only {differing} of {prompts} prompts have completions with different rewards, at {rollouts} completions "
        f"each. Every second prompt would with about {needed}: raise rollouts_per_prompt if it is lower, or give "
        "partial credit."
    )


def _few_prompts(expected: Interval, prompts: int, equal: float) -> str:
    """Where enough of the prompts differ, only their number lets the interval reach 0: no prompt has a loss."""
    differing = round((1 - equal) * prompts)
    return (
        f"Expected gain {expected.mean:+.3g}, but its 95 % interval reaches 0 ({expected.low:+.3g} to "
        f"{expected.high:+.3g}): {prompts} prompts, {differing} of them with different rewards, are too few to show a "
        "gain. Estimate more prompts: by an estimate of its own (the one beside a job takes few), with more training "
        "rows, or, if the time was short, with a lower max_tokens."
    )


def _go(expected: Interval, prompts: int, repeats: Repeats) -> str:
    noise = f" The grader differs on {repeats.disagreement:.0%} when asked twice." if repeats.disagreement else ""
    return (
        f"Expected gain {expected.mean:+.3g} (95 % interval {expected.low:+.3g} to {expected.high:+.3g}, from "
        f"{prompts} prompts).{noise}"
    )
