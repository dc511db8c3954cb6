"""Spans of a search's stages, and counts of its tokens and rounds."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from iro_server.decoding.base import Round, SearchUsage, Stage
from iro_server.telemetry import metrics, tracing
from iro_server.telemetry.request import first_chunk


class SearchTelemetry:
    """The observer of a search that answers a request, of so many rows at once; see ``SearchObserver``."""

    def prompt(self, tokens: int) -> None:
        metrics.PROMPT_TOKENS.inc(tokens)

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def stage(self, name: Stage) -> AbstractContextManager[object]:
        """The rounds of a single row, each of a token or a few, would be too many for one trace."""
        return tracing.span(name) if self.rows > 1 or name == "prefill" else nullcontext()

    def round(self, usage: SearchUsage, selection: Round) -> None:
        metrics.ROUNDS.inc(usage.rounds)
        metrics.BASE_TOKENS.inc(usage.base_tokens)
        metrics.VALUE_TOKENS.inc(usage.value_tokens)
        first_chunk()
