"""Spans of a search's stages, and counts of its tokens and rounds."""

from __future__ import annotations

from contextlib import AbstractContextManager

from iro_server.decoding.base import Round, SearchUsage, Stage
from iro_server.telemetry import metrics, tracing
from iro_server.telemetry.request import first_chunk


class SearchTelemetry:
    """The observer of the searches that answer requests; see ``SearchObserver``."""

    def prompt(self, tokens: int) -> None:
        metrics.PROMPT_TOKENS.inc(tokens)

    def stage(self, name: Stage) -> AbstractContextManager[object]:
        return tracing.span(name)

    def round(self, usage: SearchUsage, selection: Round) -> None:
        metrics.ROUNDS.inc(usage.rounds)
        metrics.BASE_TOKENS.inc(usage.base_tokens)
        metrics.VALUE_TOKENS.inc(usage.value_tokens)
        first_chunk()
