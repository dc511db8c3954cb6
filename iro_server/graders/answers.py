"""Reading a model's answer: the number, the label or the ranking in it.

No decoding constraint holds the models that are asked, so an answer is read with some patience, and an ambiguous one
counts as none: a reward that was guessed is worse than one that is missing. Of an answer that was ``cut`` by a token
limit only a whole JSON object counts: its text may lack the number, the label, or half of either.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w)", re.ASCII)
_PERCENT = re.compile(r"\s*(?:[%\N{FULLWIDTH PERCENT SIGN}]|per ?cent\b)", re.IGNORECASE)
_MINUS = "\N{MINUS SIGN}"
_DECODER = json.JSONDecoder()
CUT = "cut at its token limit (set a larger max_completions_tokens)"
LONGEST_NUMBER = 10  # digits of an answer's number in a ranking


class Unreadable(ValueError):
    """The answer has no number, or no label, or more than one. ``reason``: what is wrong, without the answer."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason} in the answer {_quoted(text)}")
        self.reason = f"{reason} in the answer"


def read_score(text: str, cut: bool = False) -> float:
    """``result`` or ``score`` of the last JSON object that has one, else the only number in the text.

    A percentage is not a number of the grader's range. Raises Unreadable.
    """
    signed = text.replace(_MINUS, "-")
    value = _field(signed, ("result", "score"), cut)
    if value is None:
        numbers = list(_NUMBER.finditer(signed))
        if len(numbers) != 1:
            raise Unreadable(f'{len(numbers)} numbers and no {{"result": number}}', text)
        if _PERCENT.match(signed, numbers[0].end()):
            raise Unreadable('a percentage and no {"result": number}', text)
        value = numbers[0][0]
    try:
        score = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise Unreadable("no finite number", text)
    return score


def read_label(text: str, labels: Sequence[str], cut: bool = False) -> str:
    """``result`` or ``label`` of the last JSON object that has one, else the only label in the text, in any case.

    Raises Unreadable.
    """
    value = _field(text, ("result", "label"), cut)
    answer = value if isinstance(value, str) else text
    by_folded = {label.casefold(): label for label in labels}
    if label := by_folded.get(answer.strip().casefold()):
        return label
    longest_first = sorted(map(re.escape, by_folded), key=len, reverse=True)
    matched_labels = set(re.findall(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", answer.casefold()))
    if len(matched_labels) != 1:
        raise Unreadable(f"{len(matched_labels)} of the labels {', '.join(labels)}", text)
    return by_folded[matched_labels.pop()]


def read_ranking(text: str, count: int, cut: bool = False) -> list[int]:
    """The place of each of ``count`` answers, 0 the best; equals share a place. From ``ranking`` or ``result`` of the
    last JSON object that has one: the numbers from 1 to ``count``, best first, equals in a list of their own.

    Raises Unreadable.
    """
    value = _field(text, ("ranking", "result"), cut)
    if not isinstance(value, list):
        raise Unreadable('no {"ranking": [numbers, best first]}', text)
    tiers = [[_as_number(name) for name in (tier if isinstance(tier, list) else [tier])] for tier in value]
    counts = Counter(number for tier in tiers for number in tier)
    mistakes = {
        "leaves out": [number for number in range(1, count + 1) if number not in counts],
        "repeats": [number for number in range(1, count + 1) if counts[number] > 1],
    }
    parts = [f"{verb} {', '.join(map(str, numbers))}" for verb, numbers in mistakes.items() if numbers]
    if others := sum(times for number, times in counts.items() if number not in range(1, count + 1)):
        parts.append(f"has {others} that are no number from 1 to {count}")
    if parts:
        raise Unreadable(f"a ranking that {' and '.join(parts)}", text)
    place_of = {number: place for place, tier in enumerate(tiers) for number in tier}
    return [place_of[number] for number in range(1, count + 1)]


def _as_number(name: object) -> int | None:
    if isinstance(name, str) and name.isdecimal() and len(name) < LONGEST_NUMBER:
        return int(name)
    return name if isinstance(name, int) and not isinstance(name, bool) else None


def _field(text: str, names: Sequence[str], cut: bool) -> Any:
    """The first of ``names`` in the last outermost JSON object of the text that has any of them, or None.

    ``cut``: of the objects before the first that is not whole. Raises Unreadable where none of these has one.
    """
    field_value = None
    start = text.find("{")
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            if cut:  # what follows may be a part of it
                break
            start = text.find("{", start + 1)
            continue
        field_value = next((value[name] for name in names if value.get(name) is not None), field_value)
        start = text.find("{", end)
    if cut and field_value is None:
        raise Unreadable(f'{CUT}: no whole {{"{names[0]}": …}}', text)
    return field_value


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
