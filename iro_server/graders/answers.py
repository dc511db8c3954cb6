"""Reading a model's answer: the number or the label in it.

No decoding constraint holds the models that are asked, so an answer is read with some patience, and an ambiguous one
counts as none: a reward that was guessed is worse than one that is missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w)", re.ASCII)
_DECODER = json.JSONDecoder()


class Unreadable(ValueError):
    """The answer has no number, or no label, or more than one. ``reason``: what is wrong, without the answer."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"{reason} in the answer {_quoted(text)}")
        self.reason = f"{reason} in the answer"


def read_score(text: str) -> float:
    """``result`` or ``score`` of the last JSON object that has one, else the only number in the text.

    Raises Unreadable.
    """
    value = _field(text, ("result", "score"))
    if value is None:
        numbers = _NUMBER.findall(text)
        if len(numbers) != 1:
            raise Unreadable(f'{len(numbers)} numbers and no {{"result": number}}', text)
        value = numbers[0]
    try:
        score = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise Unreadable("no finite number", text)
    return score


def read_label(text: str, labels: Sequence[str]) -> str:
    """``result`` or ``label`` of the last JSON object that has one, else the only label in the text, in any case.

    Raises Unreadable.
    """
    value = _field(text, ("result", "label"))
    answer = value if isinstance(value, str) else text
    by_folded = {label.casefold(): label for label in labels}
    if label := by_folded.get(answer.strip().casefold()):
        return label
    longest_first = sorted(map(re.escape, by_folded), key=len, reverse=True)
    matched_labels = set(re.findall(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", answer.casefold()))
    if len(matched_labels) != 1:
        raise Unreadable(f"{len(matched_labels)} of the labels {', '.join(labels)}", text)
    return by_folded[matched_labels.pop()]


def _field(text: str, names: Sequence[str]) -> Any:
    """The first of ``names`` in the last outermost JSON object of the text that has any of them, or None."""
    field_value = None
    start = text.find("{")
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        field_value = next((value[name] for name in names if value.get(name) is not None), field_value)
        start = text.find("{", end)
    return field_value


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
