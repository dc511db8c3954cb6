"""What the rewards of a few rollouts say to do: one word for programs, one sentence for people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from iro_server.jobs.estimates import statistics
from iro_server.jobs.estimates.statistics import Interval, Repeats, Rewards

Word = Literal["go", "more_rollouts", "constant_reward", "flaky_grader", "nothing_to_choose_from"]
MOST_UNGRADABLE = 0.5  # as in a job, which fails where more of its first rollouts get no reward
LEAST_RELIABILITY = 0.5
MOST_EQUAL = 0.8  # of prompts with equal rewards, beyond which a job would learn from too few
LEAST_PROMPTS = 3


@dataclass(frozen=True)
class Verdict:
    word: Word
    sentence: str


def judge(rewards: Rewards, repeats: Repeats, expected: Interval | None, error: str | None) -> Verdict:
    """``expected``: the gain; None where nothing was graded. ``error``: what the grader said of a completion that it
    could not grade."""
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
    if equal > MOST_EQUAL or len(values) < LEAST_PROMPTS or expected.low <= 0:
        return Verdict("more_rollouts", _more(len(values), equal, max(map(len, values))))
    return Verdict("go", _go(expected, len(values), repeats))


def _constant(flat: list[float]) -> str:
    return (
        f"The reward is always {flat[0]:g}, for each of {len(flat)} completions, so a job would learn nothing. Read "
        "the sample completions: if some are good, the grader does not see it (its field names, its parsing); if none "
        "is, give partial credit, put examples into the prompts, raise max_tokens, or take easier prompts."
    )


def _more(prompts: int, equal: float, rollouts: int) -> str:
    if prompts < LEAST_PROMPTS:
        return (
            f"Only {prompts} prompts were graded in the time that an estimate has, too few to say more: the sampling "
            "or the grader is slow. Lower max_tokens, speed up the grader, or raise the server's IRO_ESTIMATE_SECONDS."
        )
    differing = round((1 - equal) * prompts)
    factor = math.ceil(math.log(0.5) / math.log(equal)) if 0 < equal < 1 else 2
    return (
        f"Only {differing} of {prompts} prompts have completions with different rewards, at {rollouts} completions "
        f"each. With about {max(2, factor) * rollouts} (rollouts_per_prompt) every second prompt would; or give "
        "partial credit."
    )


def _go(expected: Interval, prompts: int, repeats: Repeats) -> str:
    noise = f" The grader differs on {repeats.disagreement:.0%} when asked twice." if repeats.disagreement else ""
    return (
        f"Expected gain {expected.mean:+.3g} (95 % interval {expected.low:+.3g} to {expected.high:+.3g}, from "
        f"{prompts} prompts).{noise}"
    )
