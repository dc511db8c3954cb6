"""The frozen model behind any completions endpoint, in text alone: what is left where token ids cannot be had."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar

from iro_server import JsonObject
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.quoted_tokens import literal_ids
from iro_server.engines.remote import RemoteEngine, Row
from iro_server.engines.replica import ReplicaFailure
from iro_server.engines.row_stream import RowStream
from iro_server.engines.streaming_session import StreamingSession

if TYPE_CHECKING:
    import torch


log = logging.getLogger(__name__)

BROKEN_OFF = ("abort", "error")  # by a server that ends, or drops the request
MORE_TOKENS = 4  # of a request that follows an empty text: the most that a character's bytes may take


class TextEngine(RemoteEngine):
    """Engine over ``POST /v1/completions`` of text, whose model need not be that of ``model_dir``: its tokenizer cuts
    the text for the value functions, and its first layers are what they adapt.

    What is lost against token ids:
    - The exact tokens. Ids are ``model_dir``'s, chunk by chunk: a word that a chunk's end cuts in two is read as two.
    - Chunks of equal length: ``length`` counts the endpoint's tokens.
    - A character whose bytes a chunk's end cuts in two. Where it is all that a row draws, the row is drawn again with
      ``MORE_TOKENS`` more tokens.
    - Stop ids. A row ends where the endpoint ends it, and gets ``model_dir``'s first end-of-sequence token.
    - Log-probabilities: all 0.
    A row always continues the endpoint's own text, never one that was tokenised and decoded again.
    """

    probe_every: ClassVar[float] = 15.0

    def probe_url(self, base: str) -> str:
        return f"{base}/models"

    async def try_out(self) -> None:
        if not self.info.eos_ids:
            raise ValueError("the tokenizer's model has no end-of-sequence token, which text endpoints need")
        body = request(self.model, "Hello", 1, 1, Sampling(), seed=0)
        await self.replicas.complete(body, lambda payload: str(payload["choices"][0]["text"]))
        # Value functions belong to the text of the endpoint's model as much as to the weights that they adapt.
        model_hash = sha256(f"{self.info.model_hash} {self.model}".encode()).hexdigest()
        self._info = replace(self.info, logprobs=False, adjusts=False, model_hash=model_hash)

    async def open(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        layers: Sequence[int] = (),
        steering: Steering | None = None,
        head_rows: torch.Tensor | None = None,
    ) -> TextSession:
        """As ``Engine.open``. ValueError for ``layers`` other than 0: an endpoint reports no hidden states."""
        self.check(prompt_ids, sampling, layers, steering)
        prefix_ids = list(self.tokenizer("")["input_ids"])  # such as <s>, which the endpoint will add itself
        has_prefix = list(prompt_ids[: len(prefix_ids)]) == prefix_ids
        text_ids = list(prompt_ids[len(prefix_ids) :] if has_prefix else prompt_ids)
        text = str(self.tokenizer.decode(text_ids, clean_up_tokenization_spaces=False))
        return TextSession(self, text, sampling, layers)


class TextSession(StreamingSession[str]):
    """A session of the text engine; see ``Session``. Rows that have not stopped may differ in length. Of a single row
    that is asked for in parts, the last one is all that is left."""

    _is_cut = False  # what streamed has ended, for its length

    async def _draw(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> list[Row]:
        if len(parents) * num_successors > 1:
            return await super()._draw(parents, num_successors, length)
        if self._stream is None and more and not self._is_cut:
            self.keep_row(parents[0])
            self._stream = self._begin_stream(length + more)
        if self._stream is not None:
            return [await self._draw_streamed(self._stream, length, more)]
        return [Row([], [], False)] if self._is_cut else await super()._draw(parents, num_successors, length)

    async def _draw_streamed(self, stream: RowStream, length: int, more: int) -> Row:
        try:
            row = await (stream.take(length, length + more - 1) if more else stream.take(sys.maxsize, sys.maxsize))
        except ReplicaFailure as failure:
            log.warning("%s", failure)
            self._stream = None
            missing = length + more - len(stream.rest.tokens)
            return stream.rest.continued(await self._draw_unstreamed(missing)) if missing > 0 else stream.rest
        if not row.stopped:
            return row
        await self._end_stream(stream)
        return replace(row, stopped=not self._is_cut)

    def read_event(self, event: JsonObject) -> Row | None:
        if not event["choices"]:
            return None
        (choice,) = event["choices"]
        text, reason = choice["text"], choice.get("finish_reason")
        if not isinstance(text, str) or reason in BROKEN_OFF:
            raise ValueError(f"a part of a row is {str(text)[:80]!r}, its finish_reason {reason}")
        self.prefixes = [self.prefixes[0] + text]
        self._is_cut = reason == "length"
        row = self._row(text, stopped=reason not in (None, "length"))
        return replace(row, stopped=reason is not None) if text or reason else None

    def request(self, parent: int, count: int, length: int, seed: int) -> JsonObject:
        return request(
            self.engine.model, self.prefixes[parent], count, length, self.sampling, seed >> 31
        )  # some take 32 bits

    async def _continue(self, parent: int, count: int, length: int, attempt: int = 0) -> list[tuple[str, Row]]:
        """As of any session. A row that adds nothing, and has not ended, has ended only where a longer one does so
        too, which is drawn with a seed of its own."""
        sampled = await super()._continue(parent, count, length, attempt)
        empty = [place for place, (_, row) in enumerate(sampled) if not row.tokens]
        if empty:
            longer = await super()._continue(parent, len(empty), length + MORE_TOKENS, attempt + 1)
            for place, (text, row) in zip(empty, longer, strict=True):
                sampled[place] = text, row if row.tokens else self._row(text, stopped=True)
        return sampled

    def read(self, payload: JsonObject, count: int, length: int) -> list[tuple[str, Row]]:
        return [(text, self._row(text, stopped)) for text, stopped in texts_of(payload, count)]

    def _row(self, text: str, stopped: bool) -> Row:
        tokens = literal_ids(self.engine.tokenizer, text)  # also where it spells a special token
        if stopped:
            tokens.append(self.engine.info.eos_ids[0])
        return Row(tokens, [0.0] * len(tokens), stopped)


def request(model: str, prompt: str, count: int, length: int, sampling: Sampling, seed: int) -> JsonObject:
    """OpenAI's own fields; ``top_k``, which is none of them, only where it is asked for."""
    body: JsonObject = {
        "model": model,
        "prompt": prompt,
        "n": count,
        "max_tokens": length,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    return body | ({"top_k": sampling.top_k} if sampling.top_k else {})


def texts_of(payload: JsonObject, count: int) -> list[tuple[str, bool]]:
    """Text of each row, and whether it has ended. ValueError unless there are ``count``, none of them broken off."""
    choices = sorted(payload["choices"], key=lambda choice: choice["index"])
    if len(choices) != count or not all(isinstance(choice["text"], str) for choice in choices):
        raise ValueError(f"{len(choices)} rows instead of {count}")
    if broken_off := [choice["finish_reason"] for choice in choices if choice["finish_reason"] in (*BROKEN_OFF, None)]:
        raise ValueError(f"a row was broken off: finish_reason {broken_off[0]}")
    return [(choice["text"], choice["finish_reason"] != "length") for choice in choices]
