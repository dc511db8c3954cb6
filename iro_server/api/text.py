"""From token ids to the text a user sees: stop strings cut it, and half a character waits for its other half."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what the bytes of half a character decode to


@dataclass(frozen=True)
class Detokenizer:
    """``stops`` end a text, and are no part of it."""

    tokenizer: PreTrainedTokenizerBase
    stops: tuple[str, ...] = ()

    def decode(self, tokens: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def stop_at(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((start for stop in self.stops if (start := text.find(stop)) >= 0), default=None)

    def stopped(self, tokens: Sequence[int]) -> bool:
        return self.stop_at(self.decode(tokens)) is not None

    def final_text(self, tokens: Sequence[int]) -> tuple[str, int]:
        """The text up to the first stop string, and how many of ``tokens`` it takes to see that it ends there."""
        text = self.decode(tokens)
        end = self.stop_at(text)
        if end is None:
            return text, len(tokens)
        low, high = 1, len(tokens)  # the stop string, once there, stays: bisect for when it came
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.stopped(tokens[:middle]) else (middle + 1, high)
        return text[:end], low

    def settled(self, tokens: Sequence[int]) -> str:
        """The part of the text that no continuation of ``tokens`` can change."""
        text = self.decode(tokens)
        end = self.stop_at(text)
        if end is not None:
            return text[:end]
        text = text.rstrip(UNFINISHED)
        return text[: len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)]

    def tokens_within(self, tokens: Sequence[int], settled: str) -> int:
        """How many of ``tokens`` have all their text within ``settled``, a beginning of theirs."""
        if len(self.decode(tokens)) <= len(settled):
            return len(tokens)
        return bisect_right(range(len(tokens)), len(settled), key=lambda count: len(self.decode(tokens[:count]))) - 1


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of ``stop`` that ``text`` ends with."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
