"""What a job's options make of it: completions to be sampled and graded, and from measured rates the time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from iro_server import JsonObject
from iro_server.alignment.definition import AlignmentOptions

ACTIVATION_BYTES = 2  # half precision


@dataclass(frozen=True)
class Rates:
    """Measured in the rollouts: ``tokens`` of a completion, tokens sampled a second, seconds of one grader call."""

    tokens: float
    tokens_per_second: float
    grader_seconds: float


def job_cost(
    options: AlignmentOptions, rows: int, rates: Rates, width: int, num_calls: Callable[[int], int]
) -> JsonObject:
    """Tokens, grader calls, seconds and bytes of a job over ``rows`` training rows, upper bounds but for early ends.

    ``width``: of the frozen model's hidden state, which the rollouts' features hold once for the value function and
    once for the tilt. ``num_calls``: of the grader, for so many completions of a prompt. Sampling and grading are
    counted one after the other, though a job does some of it at once.
    """
    rollouts, searched = completions(options, rows)
    search_rows = options.beam_width * options.num_successors
    calls = sum(
        round(number / group * num_calls(group))
        for number, group in ((rollouts, options.rollouts_per_prompt), (searched, search_rows))
    )
    tokens = (rollouts + searched) * rates.tokens
    return {
        "completions": rollouts + searched,
        "base_tokens": round(tokens),
        "grader_calls": calls,
        "seconds": round(tokens / rates.tokens_per_second + calls * rates.grader_seconds),
        "disk_bytes": round(rollouts * rates.tokens * 2 * width * ACTIVATION_BYTES),
    }


def completions(options: AlignmentOptions, rows: int) -> tuple[int, int]:
    """Completions that value functions are fitted on, and those of validations and of the final check."""
    reserved = min(2 * options.validation_prompts, max(1, rows // 4))
    share = max(2, (rows - reserved) // options.iterations)
    size = min(options.prompts_per_iteration or share, share)
    search_rows = options.beam_width * options.num_successors
    rollouts = size * options.rollouts_per_prompt + (options.iterations - 1) * size * search_rows
    half = math.ceil(reserved / 2)
    validations = 1 + math.ceil(options.iterations / options.eval_interval)  # of the frozen model, too
    return rollouts, half * search_rows * (validations * options.eval_samples + 2)
