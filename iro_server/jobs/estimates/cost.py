"""What a job's options make of it: completions to be sampled and graded, and from measured rates the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from iro_server import JsonObject
from iro_server.alignment.definition import AlignmentOptions

ACTIVATION_BYTES = 2  # half precision
HELDOUT_SHARE = 0.2  # of an iteration's prompts
EARLY_TRIALS, LAST_TRIALS = 14, 29  # tilts that a round tries, without lower temperatures and with them
TRIAL_SAMPLES = 8  # completions of each held-out prompt and tilt
BETA_TRIALS = 3
STRENGTHS = 3  # of a tilt, at which one row is validated beside its own
LENGTH_PROMPTS, LENGTH_SAMPLES, LENGTH_TOKENS = 8, 4, 512  # that max_tokens "auto" is measured with, not graded
NumCalls = Callable[[int], int]


class Rows(NamedTuple):
    """Rows of the training file, and of the validation file; None without one."""

    training: int
    validation: int | None = None


@dataclass(frozen=True)
class Rates:
    """Measured in the rollouts: ``tokens`` of a completion, tokens sampled a second, seconds of one grader call."""

    tokens: float
    tokens_per_second: float
    grader_seconds: float


class Work(NamedTuple):
    """Completions of so many prompts: ``completions`` of one."""

    prompts: int
    completions: int


def job_cost(options: AlignmentOptions, rows: Rows, rates: Rates, width: int, num_calls: NumCalls) -> JsonObject:
    """Tokens, grader calls, seconds and bytes of a job: upper bounds, as if its model were tilted and it ended late.

    ``width``: of the frozen model's hidden state, which the rollouts' features hold once for the value function and
    once for the tilt. ``num_calls``: of the grader, for so many completions of a prompt. Sampling and grading are
    counted one after the other, though a job does some of it at once; fitting is not counted.
    """
    rollouts, validations = job_work(options, rows)
    calls = sum(work.prompts * num_calls(work.completions) for work in [*rollouts, *validations])
    graded, ungraded = num_completions([*rollouts, *validations]), length_samples(options, rows)
    tokens = graded * rates.tokens + ungraded * LENGTH_TOKENS
    return {
        "completions": graded + ungraded,
        "base_tokens": round(tokens),
        "grader_calls": calls,
        "seconds": round(tokens / rates.tokens_per_second + calls * rates.grader_seconds),
        "disk_bytes": round(num_completions(rollouts) * rates.tokens * 2 * width * ACTIVATION_BYTES),
    }


def length_samples(options: AlignmentOptions, rows: Rows) -> int:
    """Samples that ``max_tokens`` "auto" is measured with."""
    if options.max_tokens != "auto":
        return 0
    return LENGTH_SAMPLES * min(LENGTH_PROMPTS, rows.training + (rows.validation or 0))


def num_completions(works: Iterable[Work]) -> int:
    return sum(work.prompts * work.completions for work in works)


def job_work(options: AlignmentOptions, rows: Rows) -> tuple[list[Work], list[Work]]:
    """What value functions are fitted on, and what is sampled beside it: to choose among betas or tilts, to validate
    each iteration and each way to serve it, and to check the best at the end."""
    training, validation, check = split(options, rows)
    search_rows = options.beam_width * options.num_successors
    size = min(options.prompts_per_iteration or training // options.iterations, training)
    held_out = max(1, round(size * HELDOUT_SHARE))
    is_tilted = options.tilt != "off"
    later = options.rollouts_per_prompt if is_tilted else search_rows
    rollouts = [Work(size, options.rollouts_per_prompt), *[Work(size, later)] * (options.iterations - 1)]
    if is_tilted:
        rollouts += [Work(size, max(2, options.rollouts_per_prompt // 2))] * options.tilt_rounds * options.iterations
        trials = (options.tilt_rounds - 1) * EARLY_TRIALS + LAST_TRIALS
        choosing = [Work(held_out, trials * TRIAL_SAMPLES)] * options.iterations
        tilted = [count for count in rows_of_ways(search_rows) if count <= options.max_rows]
        ways = max([*tilted, *[1] * STRENGTHS], [served_rows(options)] * 3, key=sum)  # the latter where none is kept
    else:
        choosing = [Work(held_out, BETA_TRIALS * search_rows)] * (
            options.iterations - 1 if options.betas == "auto" else 0
        )
        ways = [served_rows(options)]
    validations = math.ceil(options.iterations / options.eval_interval)
    evaluated = [Work(validation, options.rollouts_per_prompt)]
    evaluated += [Work(validation, count) for count in ways] * validations
    evaluated += [Work(check, options.rollouts_per_prompt), Work(check, max(ways))]
    return rollouts, [*choosing, *evaluated * options.eval_samples]


def rows_of_ways(search_rows: int) -> list[int]:
    """Rows of each way to serve a tilted model that a job validates."""
    quarter = max(2, search_rows // 4)
    two = [2] if quarter > 2 else []
    return [1, *two, *[quarter] * 3, *[search_rows] * 3]


def served_rows(options: AlignmentOptions) -> int:
    """Rows of the search that a model without a tilt is served with: the trainer's ``within_max_rows``."""
    width, successors, most = options.beam_width, options.num_successors, options.max_rows
    if width * successors <= most:
        return width * successors
    width = min(width, max(1, most // min(successors, 2)))
    return width * min(successors, most // width)


def split(options: AlignmentOptions, rows: Rows) -> tuple[int, int, int]:
    """Prompts that are trained on, that validate iterations, and of the final check."""
    pool = rows.validation or max(1, rows.training // 4)
    reserved = min(2 * options.validation_prompts, pool)
    validation = math.ceil(reserved / 2)
    training = rows.training if rows.validation else rows.training - reserved
    return max(2, training), validation, reserved - validation or reserved
