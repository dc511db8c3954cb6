"""A chunk that is sampled in parts: between parts, rows that have stopped leave.

Axes in tensor names: R rows of the chunk, L tokens, M rows of a part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from iro_server.engines.base import Alternatives, Chunk


class ChunkParts:
    """The parts so far. A part after the first continues, in order, the rows of the part before that have not
    stopped."""

    def __init__(self) -> None:
        self.parts: list[Chunk] = []
        self.rows: list[torch.Tensor] = []  # of each part, which rows of the chunk its rows are
        self.length = 0

    def add(self, part: Chunk) -> None:
        count = len(part.lengths_R)
        self.rows.append(self.rows[-1][self.live] if self.parts else torch.arange(count))
        self.parts.append(part)
        self.length += part.tokens_RL.shape[1]

    @property
    def live(self) -> list[int]:
        """The rows of the last part that have not stopped."""
        live: list[int] = (~self.parts[-1].stopped_R).nonzero().flatten().tolist()
        return live

    @property
    def places(self) -> dict[int, int]:
        """Of each row of the chunk that is in the last part, its place there."""
        return {row: place for place, row in enumerate(self.rows[-1].tolist())}

    def chunk(self) -> Chunk:
        """The parts joined; rows that stopped are padded."""
        first = self.parts[0]
        if len(self.parts) == 1:
            return first
        lengths_R, stopped_R = torch.zeros_like(first.lengths_R), torch.zeros_like(first.stopped_R)
        for part, rows in zip(self.parts, self.rows, strict=True):
            lengths_R[rows] += part.lengths_R
            stopped_R[rows] |= part.stopped_R
        return Chunk(
            tokens_RL=self._joined([part.tokens_RL for part in self.parts]),
            logprobs_RL=self._joined([part.logprobs_RL for part in self.parts]),
            lengths_R=lengths_R,
            stopped_R=stopped_R,
            hidden={layer: self._joined([part.hidden[layer] for part in self.parts]) for layer in first.hidden},
            log_ratios_RL=self._joined_where_reported([part.log_ratios_RL for part in self.parts]),
            kl_RL=self._joined_where_reported([part.kl_RL for part in self.parts]),
            alternatives=self._alternatives(),
            discarded_tokens=sum(part.discarded_tokens for part in self.parts),
        )

    def _joined(self, terms: Sequence[torch.Tensor]) -> torch.Tensor:
        """[R, L, ...] from the parts' [M, tokens, ...]."""
        joined = terms[0].new_zeros(len(terms[0]), self.length, *terms[0].shape[2:])
        start = 0
        for term, rows in zip(terms, self.rows, strict=True):
            stop = start + term.shape[1]
            joined[rows, start:stop] = term
            start = stop
        return joined

    def _joined_where_reported(self, terms: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        reported = [term for term in terms if term is not None]
        return self._joined(reported) if len(reported) == len(terms) else None

    def _alternatives(self) -> list[list[Alternatives]] | None:
        of_rows: list[list[Alternatives]] = [[] for _ in self.parts[0].lengths_R]
        for part, rows in zip(self.parts, self.rows, strict=True):
            if part.alternatives is None:
                return None
            for row, alternatives in zip(rows.tolist(), part.alternatives, strict=True):
                of_rows[row].extend(alternatives)
        return of_rows
