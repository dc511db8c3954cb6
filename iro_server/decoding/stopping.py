"""Rows that end at strings of their text: the token that completes one is a row's last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from iro_server.engines.base import Chunk, Session
from iro_server.engines.chunk_parts import ChunkParts

STOP_TOKENS = 8  # a row's text is looked up each time that it has so many more


class StopStrings(Protocol):
    """What ends a row's text."""

    @property
    def num_context_tokens(self) -> int:
        """How many tokens before new ones a string may begin in that ends in these."""
        ...

    def first_stop(self, context: Sequence[int], tokens: Sequence[int]) -> int | None:
        """How many of ``tokens``, which follow ``context``, it takes to complete a string; None where they complete
        none."""
        ...


class StoppingSession:
    """A session whose rows also stop at strings. ``part_length``: tokens between looks; None: a chunk is one part, for
    an engine that cannot continue its rows."""

    def __init__(self, session: Session, stops: StopStrings, part_length: int | None = STOP_TOKENS) -> None:
        self._session, self._stops, self._part_length = session, stops, part_length
        self._places = {0: 0}  # of the last chunk's rows that have not stopped, in the inner session's last chunk
        self._contexts: dict[int, list[int]] = {0: []}  # their last tokens

    @property
    def cached_tokens(self) -> int:
        """As ``Session.cached_tokens``."""
        return self._session.cached_tokens

    async def extend(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> Chunk:
        """As ``Session.extend``. Tokens past a string are drawn and discarded."""
        part_length, parts, remaining_tokens = self._part_length or length, ChunkParts(), length
        places, successors = [self._places[parent] for parent in parents], num_successors
        contexts = [self._contexts[parent] for parent in parents for _ in range(num_successors)]
        while places and remaining_tokens > 0:  # as the engine counts: a part's tokens may be more or fewer
            part_length = min(part_length, remaining_tokens)
            follows = remaining_tokens - part_length or (more if part_length == length else 0)
            part = await self._session.extend(places, successors, part_length, follows)
            is_single = len(places) * successors == 1
            remaining_tokens -= max(part_length, part.tokens_RL.shape[1]) if is_single else part_length
            parts.add(self._cut(part, contexts))
            places, successors = parts.live, 1
            contexts = [self._last(contexts[place] + part.tokens_RL[place].tolist()) for place in places]
        rows = parts.rows[-1][places].tolist()
        self._places, self._contexts = dict(zip(rows, places, strict=True)), dict(zip(rows, contexts, strict=True))
        return parts.chunk()

    def _cut(self, part: Chunk, contexts: Sequence[Sequence[int]]) -> Chunk:
        """The part, whose rows end at the first string that they complete."""
        lengths_R, stopped_R = part.lengths_R.clone(), part.stopped_R.clone()
        rows = zip(contexts, part.tokens_RL.tolist(), part.lengths_R.tolist(), strict=True)
        for row, (context, tokens, length) in enumerate(rows):
            if (count := self._stops.first_stop(context, tokens[:length])) is not None:
                lengths_R[row], stopped_R[row] = count, True
        discarded_tokens = part.discarded_tokens + int((part.lengths_R - lengths_R).sum())
        return replace(part, lengths_R=lengths_R, stopped_R=stopped_R, discarded_tokens=discarded_tokens)

    def _last(self, tokens: list[int]) -> list[int]:
        return tokens[max(0, len(tokens) - self._stops.num_context_tokens) :]

    def close(self) -> None:
        """As ``Session.close``."""
        self._session.close()
