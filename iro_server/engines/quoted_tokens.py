"""Special tokens that a conversation's messages spell: they are tokenised as text.

While the chat template is rendered, a mark stands for each of them. The template's own special tokens are then the only
ones in the text between the marks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from iro_server import JsonObject
from iro_server.engines.continued_text import continued_ids

MARKS = [*map(chr, range(0xE000, 0xF900))]  # characters for private use, which no tokenizer gives a meaning


class QuotedTokens:
    """Those of ``messages``, each shown to the template as its number between two marks that no message has.

    Raises jinja2.TemplateError if the messages use every mark there is.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: object) -> None:
        self.tokenizer = tokenizer
        self.spellings = _spellings(tokenizer)
        self.tokens = list(self.spellings)
        self.numbers = {token: number for number, token in enumerate(self.tokens)}
        used = set().union(*strings(messages))
        unused = (mark for mark in MARKS if mark not in used)
        if (mark := next(unused, None)) is None:
            raise TemplateError("a message spells a special token, and every private-use character of Unicode")
        self.mark = mark

    @staticmethod
    def occur(tokenizer: PreTrainedTokenizerBase, messages: object) -> bool:
        """Whether a string in ``messages`` spells a special token."""
        pattern = _pattern(tokenizer)
        return any(pattern.search(text) for text in strings(messages))

    def prompt_ids(self, messages: list[JsonObject], tools: list[JsonObject] | None = None) -> list[int]:
        """Token ids of the rendered conversation. Raises jinja2.TemplateError where the template refuses it."""
        marked = [replaced(message, self._marked) for message in messages]
        shown = None if tools is None else [replaced(tool, self._marked) for tool in tools]
        text = self.tokenizer.apply_chat_template(marked, tools=shown, add_generation_prompt=True, tokenize=False)
        parts = re.split(f"{self.mark}([0-9]+){self.mark}", str(text))
        ids = list(self.tokenizer(parts[0], add_special_tokens=False)["input_ids"])
        for number, part in zip(parts[1::2], parts[2::2], strict=True):
            ids += [*self._spelled(number), *continued_ids(self.tokenizer, part)]
        return ids

    def _marked(self, text: str) -> str:
        return _pattern(self.tokenizer).sub(lambda match: f"{self.mark}{self.numbers[match[0]]}{self.mark}", text)

    def _spelled(self, number: str) -> list[int]:
        return self.spellings[self.tokens[int(number)]]


def literal_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, which goes on from another one, in which a special token's spelling is text too."""
    spellings = _spellings(tokenizer)
    parts = re.split(f"({_pattern(tokenizer).pattern})", text)
    plain = [continued_ids(tokenizer, part) for part in parts[::2]]
    special = [spellings[part] for part in parts[1::2]]
    return [id for ids in chain.from_iterable(zip_longest(plain, special, fillvalue=[])) for id in ids]


def strings(value: object) -> Iterator[str]:
    """All strings in a JSON value, keys too: a call's arguments and a tool's parameters have keys that users name."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def replaced(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with ``change`` applied to all its strings, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): replaced(item, change) for key, item in value.items()}
    return [replaced(item, change) for item in value] if isinstance(value, list) else value


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    added = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


@lru_cache(maxsize=16)
def _pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Any special token, the longest that begins where it does."""
    longest_first = sorted(filter(None, _special_ids(tokenizer)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


@lru_cache(maxsize=16)
def _spellings(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The ids of each special token's characters.

    From a copy: ``split_special_tokens`` changes a tokenizer for all of its threads.
    """
    plain, special = copy.deepcopy(tokenizer), _special_ids(tokenizer)

    def ids(text: str) -> list[int]:
        return continued_ids(plain, text, split_special_tokens=True)

    def spelled(token: str) -> list[int]:
        token_ids = ids(token)  # a vocabulary of pieces may have the token as a piece too
        return token_ids if special[token] not in token_ids else [id for char in token for id in ids(char)]

    return {token: spelled(token) for token in special if token}
