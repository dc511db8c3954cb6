"""JSON schemas as grammars over a tokenizer's tokens, by llguidance: which tokens may come next."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from cachetools import LRUCache
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from transformers import PreTrainedTokenizerBase

KEPT_SCHEMAS = 64
# A small model may write spaces without end.
WHITESPACE: JsonCompileOptions = {"whitespace_flexible": True, "whitespace_pattern": " ?"}
ANY_WHITESPACE: JsonCompileOptions = {"whitespace_flexible": True, "whitespace_pattern": r"[\x20\x0A\x0D\x09]*"}
# Of a schema's compilation (20 ms for most), then of each row's step: some 4 ms of a lexer, 1 ms of a parser.
LIMITS = LLParserLimits(
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=5_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


class SchemaRefused(ValueError):
    """A JSON schema that answers cannot be held to."""


class Grammars:
    """Grammars of one tokenizer. Those of the last ``KEPT_SCHEMAS`` schemas are kept."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]) -> None:
        self._tokenizer, self._eos_ids = tokenizer, list(eos_ids)
        self._vocabulary: LLTokenizer | None = None
        self._compiled: LRUCache[str, LLMatcher] = LRUCache(KEPT_SCHEMAS)
        self._lock = threading.Lock()

    def start(self, schema: str) -> LLMatcher:
        """A matcher at the beginning of a text that fits ``schema``, which is JSON. SchemaRefused where there is none.

        Blocks while the schema is compiled: to be called from a thread.
        """
        with self._lock:
            matcher = self._compiled.get(schema)
        if matcher is None:
            matcher = self._compile(schema)
            with self._lock:
                self._compiled[schema] = matcher
        return matcher.deep_copy()

    def fit(self, schema: str) -> SchemaFit:
        """Of one answer, whose JSON may have white space of any length. Blocks and raises as ``start``."""
        matcher = LLMatcher(self.prepare(), _grammar(schema, ANY_WHITESPACE), log_level=0)
        return SchemaFit(matcher, self.prepare().vocab_size, self._eos_ids)

    def along(self, schema: str, tokens: Sequence[int], vocabulary: int) -> torch.Tensor:
        """What each token of an answer that is held to ``schema`` was drawn from: bool [T, vocabulary]. Blocks and
        raises as ``start``."""
        rows, allowed = GrammarRows(self.start(schema), self._eos_ids), []
        for token in tokens:
            allowed.append(rows.allowed(vocabulary))
            rows.take([[token]])
        return torch.cat(allowed)

    def _compile(self, schema: str) -> LLMatcher:
        vocabulary = self.prepare()
        matcher = LLMatcher(vocabulary, _grammar(schema, WHITESPACE), limits=LIMITS, log_level=0)
        if not matcher.is_error() and not any(matcher.compute_bitmask()):
            raise SchemaRefused("no text fits the schema")
        _check(matcher)
        return matcher

    def prepare(self) -> LLTokenizer:
        """The tokens' bytes. SchemaRefused where the tokenizer has none that can be read.

        The first call takes half a second of a core and stops all other threads of the process: it is for the start.
        """
        with self._lock:
            if self._vocabulary is None:
                if not isinstance(self._tokenizer, PreTrainedTokenizerFast) or not self._eos_ids:
                    raise SchemaRefused("the model's tokenizer takes no schema: it is no fast one, or ends no text")
                self._vocabulary = from_tokenizer(
                    self._tokenizer, n_vocab=len(self._tokenizer), eos_token=self._eos_ids
                )
            return self._vocabulary


@lru_cache(maxsize=16)
def grammars_of(tokenizer: PreTrainedTokenizerBase, eos_ids: tuple[int, ...]) -> Grammars:
    """The grammars that all sessions of a tokenizer share."""
    return Grammars(tokenizer, eos_ids)


class SchemaFit:
    """Whether an answer that grows fits a schema."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, eos_ids: Sequence[int]) -> None:
        self._matcher, self._vocabulary, self._eos_ids = matcher, vocabulary, eos_ids

    def misfit(self, tokens: Sequence[int]) -> str | None:
        """Why its next tokens, which end with an end token where it is whole, do not fit; None where they do."""
        is_whole = bool(tokens) and tokens[-1] in self._eos_ids
        for token in tokens[:-1] if is_whole else tokens:
            if token >= self._vocabulary:
                return f"it has the unused token {token}"
            if not self._matcher.consume_token(token):
                return self._matcher.get_error().partition("\n")[0]
        return "it ends too early" if is_whole and not self._matcher.is_accepting() else None


class GrammarRows:
    """What each row of a session may say next. A row that has ended may say anything: nobody reads it."""

    def __init__(self, matcher: LLMatcher, stop_ids: Sequence[int]) -> None:
        self._rows: list[LLMatcher | None] = [matcher]
        self._stop_ids = frozenset(stop_ids)

    def select(self, parents: Sequence[int]) -> None:
        """Keep these rows, in this order; repeats allowed."""
        self._rows = [self._copy(parent) for parent in parents]

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        """Every row goes on as many ways as it has tokens here. SchemaRefused where that exceeds a limit."""
        rows: list[LLMatcher | None] = []
        for place, successors in enumerate(tokens):
            for token in successors:
                matcher = None if token in self._stop_ids else self._copy(place)
                if matcher is not None and not matcher.consume_token(token):
                    _check(matcher)
                rows.append(matcher)
        self._rows = rows

    def allowed(self, vocabulary: int) -> torch.Tensor:
        """bool [M, vocabulary]. SchemaRefused where finding them exceeds a limit."""
        allowed_MV = np.zeros((len(self._rows), vocabulary), dtype=bool)
        for place, matcher in enumerate(self._rows):
            if matcher is None:
                allowed_MV[place] = True
                continue
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
            _check(matcher)
            count = min(len(bits), vocabulary)
            allowed_MV[place, :count] = bits[:count]
        return torch.from_numpy(allowed_MV)

    def _copy(self, place: int) -> LLMatcher | None:
        matcher = self._rows[place]
        return None if matcher is None else matcher.deep_copy()


def _grammar(schema: str, whitespace: JsonCompileOptions) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides=whitespace)
    except ValueError as error:
        raise SchemaRefused(str(error)) from error


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise SchemaRefused(matcher.get_error()[:300] or "it cannot be applied")
