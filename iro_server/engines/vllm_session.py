"""The rows of a prompt that vLLM continues: as chunks, or a single one as a stream."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from weakref import finalize

from iro_server import JsonObject
from iro_server.concurrency.tasks import gather_or_cancel
from iro_server.engines.adapter_holds import Adapter, AdapterHolds
from iro_server.engines.base import Sampling
from iro_server.engines.endpoints import EngineUnavailable, SchemaViolated
from iro_server.engines.grammars import SchemaFit, grammars_of
from iro_server.engines.remote import RemoteEngine, Row
from iro_server.engines.replica import ReplicaFailure
from iro_server.engines.row_stream import RowStream
from iro_server.engines.streaming_session import StreamingSession
from iro_server.engines.vllm_protocol import generate_request, generated_rows, request, rows_of, streamed_row
from iro_server.engines.vllm_server import SCHEMA_FLAGS
from iro_server.engines.vllm_steering import WORDS_CHUNK, SteeredPrompt
from value_heads.reserved_tokens import ReservedTokens

log = logging.getLogger(__name__)


class VLLMSession(StreamingSession[list[int]]):
    """A session of the vLLM engine; see ``Session``."""

    steered: SteeredPrompt | None = None
    reserved: ReservedTokens | None = None
    _release: finalize[..., VLLMSession] | None = None
    _fit: SchemaFit | None = None  # of a row that streams

    def __init__(
        self, engine: RemoteEngine, vocabulary: int, prompt: list[int], sampling: Sampling, layers: Sequence[int]
    ) -> None:
        super().__init__(engine, prompt, sampling, layers)
        self._vocabulary, self._prompt_length = vocabulary, len(prompt)

    def hold(self, adapter: Adapter, holds: AdapterHolds) -> None:
        """Name the adapter in requests, and keep it on disk until the session is closed."""
        holds.hold(adapter)
        self.adapter, self._release = adapter, finalize(self, holds.release, adapter)
        self._release.atexit = False

    def close(self) -> None:
        super().close()
        if self._release is not None:
            self._release()

    def request(self, parent: int, count: int, length: int, seed: int) -> JsonObject:
        model = self.adapter.name if self.adapter else self.engine.model
        seed_asked_for = None if self.sampling.seed is None else seed
        body = request(model, self.prefixes[parent], count, length, self.sampling, seed_asked_for)
        if self.steered:
            biases = Counter(self.steered.logit_bias(parent))
            biases.update(body.get("logit_bias", {}))
            body["logit_bias"] = dict(biases)
        return generate_request(body, self.reserved) if self.reserved else body

    async def _continue_all(self, counts: Mapping[int, int], length: int) -> dict[int, list[tuple[list[int], Row]]]:
        """Parents with equal numbers of continuations are one request, unless each has a seed or a bias of its own, or
        the route takes one prompt."""
        if self.sampling.seed is not None or self.reserved or (self.steered and self.steered.reads_words):
            return await super()._continue_all(counts, length)
        groups = [[parent for parent in counts if counts[parent] == count] for count in sorted(set(counts.values()))]
        answers = await gather_or_cancel(self._continue_group(group, counts[group[0]], length) for group in groups)
        return {parent: rows for answer in answers for parent, rows in answer.items()}

    async def _continue_group(
        self, parents: Sequence[int], count: int, length: int
    ) -> dict[int, list[tuple[list[int], Row]]]:
        body = self.request(parents[0], count, length, seed=0)
        body["prompt"] = [self.prefixes[parent] for parent in parents]
        read = partial(self.read, count=count * len(parents), length=length)
        rows, self.replica = await self.engine.replicas.complete(body, read, self.replica, self.adapter)
        return {parent: rows[place * count : (place + 1) * count] for place, parent in enumerate(parents)}

    async def _draw(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> list[Row]:
        """As of any session, but in several requests where what the rows have said changes their tilt, and the sampling
        does not hold them to one, and a single row of which more is asked for from a stream. SchemaViolated where an
        answer does not fit the sampling's schema."""
        if (more or self._stream) and len(parents) * num_successors == 1:
            self.keep_row(parents[0])
            row = await self._draw_part(length, more)
            await self._check_schema([row], streams=True)
            return [row]
        if self.sampling.remembers:
            rows = await super()._draw(parents, num_successors, length)
            await self._check_schema(rows)
            return rows
        steered = self._steered_by_words
        if steered is None:
            return await super()._draw(parents, num_successors, length)
        rows = await super()._draw(parents, num_successors, min(length, WORDS_CHUNK))
        for start in range(WORDS_CHUNK, length, WORDS_CHUNK):
            live = [place for place, row in enumerate(rows) if not row.stopped]
            if not live:
                break
            prefixes, said = self.prefixes, steered.features.rows
            longer = await super()._draw(live, 1, min(WORDS_CHUNK, length - start))
            for place, row, prefix, words in zip(live, longer, self.prefixes, steered.features.rows, strict=True):
                rows[place] = rows[place].continued(row)
                prefixes[place], said[place] = prefix, words
            self.prefixes, steered.features.rows = prefixes, said
        return rows

    @property
    def _steered_by_words(self) -> SteeredPrompt | None:
        """The tilt, where what a row has said changes it, and the row may be drawn in several requests."""
        return self.steered if self.steered and self.steered.reads_words and not self.sampling.remembers else None

    @property
    def _said(self) -> list[int]:
        """The tokens of the session's one row."""
        return self.prefixes[0][self._prompt_length :]

    async def _draw_part(self, length: int, more: int) -> Row:
        """The next tokens of the session's one row: at least ``length`` of a stream, or all of a request."""
        if self.reserved and self.sampling.remembers:
            (row,) = await super()._draw([0], 1, length + more)
            return row
        return await (self._draw_unstreamed(length + more) if self.reserved else self._draw_streamed(length, more))

    async def _draw_streamed(self, length: int, more: int) -> Row:
        """The next part of a row. What a stream fails to bring is asked for as any other chunk; what follows that from
        a new stream."""
        row = Row([], [], False)
        while (missing := length - len(row.tokens)) > 0 and not row.stopped:
            stream = self._stream = self._stream or self._begin_stream(missing + more)
            try:
                part = await stream.take(min(missing, stream.left), missing + more)
            except ReplicaFailure as failure:
                log.warning("%s", failure)
                self._stream = None
                rest = self._draw_again(stream) if self.sampling.remembers else self._draw_unstreamed(missing + more)
                return row.continued(await rest)
            self._add(part)
            if part.stopped or not stream.left:
                await self._end_stream(stream)
            row = row.continued(part)
        return row

    def _add(self, part: Row) -> None:
        """To the session's one row."""
        self.prefixes = [self.prefixes[0] + part.tokens]
        self.follow([0], [part.tokens])

    async def _draw_again(self, stream: RowStream) -> Row:
        """What is missing of a row that no request continues: the whole row is drawn again, with the seed of its
        stream. EngineUnavailable where it is another."""
        said = self._said
        read = partial(self.read, count=1, length=stream.length)
        ((_, row),), self.replica = await self.engine.replicas.complete(stream.body, read, self.replica, self.adapter)
        repeated, rest = row.split(len(said))
        if repeated.tokens != said:
            raise EngineUnavailable("an answer broke off that has penalties or a format, with which none is continued")
        self._add(rest)
        return rest

    def stream_request(self, length: int, seed: int) -> JsonObject:
        """With a seed where the row may have to be drawn again."""
        body = super().stream_request(length, seed)
        return body | {"seed": seed} if self.sampling.remembers else body

    def _begin_stream(self, length: int) -> RowStream:
        return super()._begin_stream(min(length, WORDS_CHUNK) if self._steered_by_words else length)

    def read_event(self, event: JsonObject) -> Row | None:
        if self.round == 1:
            self._count_cached(event)
        return streamed_row(event, self.sampling, self._vocabulary)

    def _count_cached(self, payload: JsonObject) -> None:
        details = (payload.get("usage") or {}).get("prompt_tokens_details") or {}
        self.cached_tokens = int(details.get("cached_tokens") or 0)

    async def _check_schema(self, rows: Sequence[Row], streams: bool = False) -> None:
        """Of whole rows, or of what a single one adds to its earlier parts."""
        if self.sampling.schema is not None:
            await asyncio.to_thread(self._check_fit, self.sampling.schema, rows, streams)

    def _check_fit(self, schema: str, rows: Sequence[Row], streams: bool) -> None:
        grammars = grammars_of(self.engine.tokenizer, self.engine.info.eos_ids)
        for row in rows:
            fit = self._fit or grammars.fit(schema)
            self._fit = fit if streams else None
            if misfit := fit.misfit(row.tokens):
                advice = f"start vLLM with {' '.join(SCHEMA_FLAGS)}"
                raise SchemaViolated(f"an answer does not fit its schema, {advice}: {misfit}")

    def follow(self, parents: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        if self.steered:
            self.steered.follow(parents, tokens)

    def read(self, payload: JsonObject, count: int, length: int) -> list[tuple[list[int], Row]]:
        if not self.round:
            self._count_cached(payload)
        if self.reserved:
            rows = generated_rows(payload, count, length, self.sampling, self._vocabulary, self.reserved)
        else:
            rows = rows_of(payload, count, length, self.sampling, self._vocabulary)
        return [(row.tokens, row) for row in rows]
