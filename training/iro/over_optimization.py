"""Whether an aligned model's reward rises while its text leaves what the frozen model writes.

A grader that can be exploited is satisfied by text that the frozen model hardly ever writes: a repeated word, a text of
two tokens, one of the maximum length. Reconstruction: the paper has no such rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.iro.diagnostics import mean_and_error
from training.json_values import JsonObject

FloatArray = NDArray[np.float64]
CODE = "over_optimization"
TAIL = 0.05  # share of the frozen model's completions
MEASURES = {"perplexity": "perplexity under the frozen model", "distinct_2": "distinct-2", "length": "length in tokens"}
WRITING = ("perplexity", "distinct_2")  # measures whose departure keeps a way of serving, or a step, from being chosen


def measures(tokens: Sequence[int], logprob: float) -> dict[str, float]:
    """Of one completion: perplexity under the frozen model, the share of its bigrams that differ (NaN for fewer than
    two tokens), and length. ``logprob``: of all its tokens together."""
    bigrams = list(pairwise(tokens))
    return {
        "perplexity": math.exp(min(-logprob / max(1, len(tokens)), 100.0)),
        "distinct_2": len(set(bigrams)) / len(bigrams) if bigrams else math.nan,
        "length": float(len(tokens)),
    }


def perplexity(rows: Sequence[JsonObject]) -> float:
    """Of the completions under the frozen model. ``rows``: of ``Validation``."""
    return math.exp(-sum(row["logprob"] for row in rows) / max(1.0, sum(row["tokens"] for row in rows)))


def distinct_2(rows: Sequence[JsonObject]) -> float:
    """The mean of the completions that have bigrams, NaN without one. ``rows``: of ``Validation``."""
    return mean_and_error([part["distinct_2"] for row in rows for part in row["completions"]])[0]


def rises(base: Sequence[JsonObject], aligned: Sequence[JsonObject]) -> bool:
    """Whether the reward is above the frozen model's by twice the error of the paired difference."""
    gain, error = mean_and_error([new["value_pick"] - old["mean"] for new, old in zip(aligned, base, strict=True)])
    return gain > 2 * error


def departures(
    base: Sequence[JsonObject], aligned: Sequence[JsonObject], sharpened: bool = False
) -> list[JsonObject] | None:
    """The measures by which the aligned model's text leaves the frozen model's range, where its reward rises.

    A measure leaves the range where at most ``TAIL`` of the frozen model's completions are as far on one side as the
    median of the aligned model's. Both lists hold a row of ``Validation`` for each of the same prompts. Returns the
    measure, the aligned median, and the frozen model's quantiles at ``TAIL`` and 1 - ``TAIL``. None where the rows come
    from a version that did not measure them. ``sharpened``: the aligned model samples at a lower temperature, at which
    any text is likelier: a low perplexity is no departure then.
    """
    if not all("completions" in row for row in [*base, *aligned]):
        return None
    if not rises(base, aligned):
        return []
    outside = []
    for name in MEASURES:
        frozen_N = _known(part[name] for row in base for part in row["completions"])
        picks_N = _known(part[name] for row in aligned for part in row["picks"])
        if not len(frozen_N) or not len(picks_N):
            continue
        median = float(np.median(picks_N))
        tails = {"low": (frozen_N <= median).mean(), "high": (frozen_N >= median).mean()}
        if sharpened and name == "perplexity":
            del tails["low"]
        if min(tails.values()) <= TAIL:
            low, high = np.quantile(frozen_N, [TAIL, 1 - TAIL]).tolist()
            outside.append({"measure": name, "median": median, "frozen_low": low, "frozen_high": high})
    return outside


def first_usual(
    base: Sequence[JsonObject], candidates: Sequence[tuple[Sequence[JsonObject], Sequence[JsonObject] | None]]
) -> int:
    """The index of the first of the aligned models that are above the frozen model and write like it, else 0.

    ``candidates``: rows of ``Validation`` on the same prompts as ``base``, and their ``departures``.
    """
    for place, (aligned, outside) in enumerate(candidates):
        if rises(base, aligned) and writes_alike(outside):
            return place
    return 0


def writes_alike(outside: Sequence[JsonObject] | None) -> bool:
    """Whether ``departures`` found no measure of the writing. A grader may want other lengths."""
    return not any(part["measure"] in WRITING for part in outside or [])


def warning(outside: Sequence[JsonObject]) -> str:
    """What an event says of ``departures``."""
    parts = [
        f"{MEASURES[part['measure']]} {part['median']:.3g} (frozen model: {part['frozen_low']:.3g} to "
        f"{part['frozen_high']:.3g})"
        for part in outside
    ]
    return (
        f"Over-optimisation: the reward rises, and the text leaves what the frozen model writes. {'; '.join(parts)}. "
        "Read some completions: the grader may reward what nobody wants"
    )


def _known(values: Iterable[float]) -> FloatArray:
    numbers = np.array(list(values), dtype=np.float64)
    return numbers[~np.isnan(numbers)]
