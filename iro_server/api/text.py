"""From token ids to the text a user sees: stop strings cut it, and half a character waits for its other half."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what the bytes of half a character decode to
EDGE_TOKENS = 8  # more than half a character has, at which a row of tokens may begin


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

    @property
    def num_context_tokens(self) -> int:
        """As ``StopStrings.num_context_tokens``: a token that has text has a byte of it or more."""
        return EDGE_TOKENS + max((len(stop.encode()) for stop in self.stops), default=0)

    def first_stop(self, context: Sequence[int], tokens: Sequence[int]) -> int | None:
        """As ``StopStrings.first_stop``."""
        before, after = list(context), list(tokens)
        if not self.stopped(before + after):
            return None
        return self._tokens_to_stop(before, after)

    def _tokens_to_stop(self, context: list[int], tokens: list[int]) -> int:
        """How many of ``tokens``, which hold a stop string, it takes to see one: once there, it stays."""
        return bisect_left(range(1, len(tokens)), True, key=lambda count: self.stopped(context + tokens[:count])) + 1

    def final_text(self, tokens: Sequence[int]) -> tuple[str, int]:
        """The text up to the first stop string, and how many of ``tokens`` it takes to see that it ends there."""
        text = self.decode(tokens)
        end = self.stop_at(text)
        if end is None:
            return text, len(tokens)
        return text[:end], self._tokens_to_stop([], list(tokens))

    def settled(self, tokens: Sequence[int]) -> str:
        """The part of the text that no continuation of ``tokens`` can change."""
        return self.settled_part(self.decode(tokens))

    def settled_part(self, text: str) -> str:
        """The part of a beginning of a text that no continuation can change."""
        end = self.stop_at(text)
        if end is not None:
            return text[:end]
        text = text.rstrip(UNFINISHED)
        return text[: len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)]


class GrowingText:
    """The text of tokens that become more. New ones are decoded beside a few before them, from where a character
    begins: the time does not grow with the text."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self.detokenizer = detokenizer
        self._text = ""  # of the tokens up to the last that ends with a whole character
        self._rest = ""  # of those after it, which ends with half a character
        self._lengths = [0]  # of the text of so many tokens
        self._offsets: list[int] = []  # of each token in the text
        self._context, self._boundary = 0, 0  # tokens before the context, and before the rest
        self._context_text = ""  # of those between

    def settled(self, tokens: Sequence[int]) -> tuple[str, int]:
        """``Detokenizer.settled`` of tokens that begin with those of the call before, and how many of them have all
        their text within it."""
        self._read_new(tokens)
        settled = self.detokenizer.settled_part(self._text + self._rest)
        if self._lengths[-1] <= len(settled):
            return settled, len(tokens)
        return settled, bisect_right(self._lengths, len(settled)) - 1

    def offsets(self, tokens: Sequence[int]) -> list[int]:
        """Where the text of each token begins, of a later part of a character where the character does. ``tokens`` as
        in ``settled``."""
        self._read_new(tokens)
        return self._offsets

    def _read_new(self, tokens: Sequence[int]) -> None:
        for count in range(len(self._lengths), len(tokens) + 1):
            self._read(tokens, count)

    def _read(self, tokens: Sequence[int], count: int) -> None:
        """Read the last of ``count`` tokens."""
        rest_before = self._rest
        text = self.detokenizer.decode(tokens[self._context : count])
        # Some tokenizers show whole characters before half a one as halves too: then nothing is sure until it ends.
        self._rest = text[len(self._context_text) :] if text.startswith(self._context_text) else UNFINISHED
        self._lengths.append(len(self._text) + len(self._rest))
        is_part = self._rest.endswith(UNFINISHED)
        unchanged = len(rest_before.rstrip(UNFINISHED)) if is_part else _common_length(rest_before, self._rest)
        self._offsets.append(len(self._text) + unchanged)
        if self._rest and not is_part:
            self._text, self._rest = self._text + self._rest, ""
            self._context, self._boundary = self._boundary, count
            self._context_text = self.detokenizer.decode(tokens[self._context : count])


def _common_length(first: str, second: str) -> int:
    """The length of the longest beginning that both texts have."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest beginning of ``stop`` that ``text`` ends with."""
    return next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
