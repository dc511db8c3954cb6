"""A search's rounds as a stream reports them: every row with its text and value, and which rows live on."""

from __future__ import annotations

import math
from collections.abc import Callable

from iro_server import JsonObject
from iro_server.api.search_telemetry import SearchTelemetry
from iro_server.api.text import Detokenizer
from iro_server.decoding.base import Round, SearchUsage
from iro_server.decoding.beam import Beam

OnRound = Callable[[Round], None]


class SearchTrace(SearchTelemetry):
    """An observer that also passes on each round."""

    def __init__(self, rows: int, on_round: OnRound) -> None:
        super().__init__(rows)
        self.on_round = on_round

    def round(self, usage: SearchUsage, selection: Round) -> None:
        super().round(usage, selection)
        self.on_round(selection)


class RoundWriter:
    """The rounds of one search as JSON. The texts along a path from the prompt join to the text of its last beam.

    A beam: ``id``, from 1; ``parent``, null for the prompt; ``text``, of its own chunk; ``tokens`` and ``value``, of
    the path to its end, ``value`` null without value functions; ``kept``: it lives on, or is among the finals;
    ``finished``.
    """

    def __init__(self, detokenizer: Detokenizer, scored: bool) -> None:
        self.detokenizer, self.scored = detokenizer, scored
        self.rounds = 0
        self.texts = {0: ""}  # of the path to each beam that lives on

    def write(self, selection: Round) -> JsonObject:
        """``dropped``: ids of beams that finished in an earlier round and are dropped in this one."""
        self.rounds += 1
        chosen = {beam.number for beam in selection.chosen}
        texts = {beam.number: self._text(beam, selection.last) for beam in selection.rows}
        beams = [self._beam(beam, texts[beam.number], beam.number in chosen) for beam in selection.rows]
        dropped = sorted(self.texts.keys() - {0} - chosen - {beam["parent"] for beam in beams})
        self.texts = {number: (self.texts | texts)[number] for number in chosen}
        return {"round": self.rounds, "last": selection.last, "beams": beams, "dropped": dropped}

    def _text(self, beam: Beam, last: bool) -> str:
        tokens = beam.tokens_from(0)
        is_over = last or beam.finished
        return self.detokenizer.final_text(tokens)[0] if is_over else self.detokenizer.settled(tokens)

    def _beam(self, beam: Beam, text: str, kept: bool) -> JsonObject:
        parent = beam.parent.number if beam.parent else 0
        return {
            "id": beam.number,
            "parent": parent or None,
            "text": text[len(self.texts[parent]) :],
            "tokens": beam.length,
            "value": round(beam.value, 4) if self.scored and math.isfinite(beam.value) else None,
            "kept": kept,
            "finished": beam.finished,
        }
