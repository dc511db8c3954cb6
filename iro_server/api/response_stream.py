"""A response as server-sent events, each of its own type and numbered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import cast

from fastapi.concurrency import run_in_threadpool

from iro_server import JsonObject
from iro_server.api.generation import Choice, Generated
from iro_server.api.options import usage_object
from iro_server.api.respond import Queue, Stream
from iro_server.decoding.beam import SampledTokens

PLACE = {"output_index": 0, "content_index": 0}


class ResponseEvents:
    """The events of one message, as the choices of a stream's chunks. ``started``: the response in progress."""

    def __init__(self, message_id: str, started: JsonObject) -> None:
        self.message_id, self.started = message_id, started
        self._number = 0

    def head(self, index: int) -> list[JsonObject]:
        item = {"id": self.message_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        return [
            self.event("response.created", response=self.started),
            self.event("response.in_progress", response=self.started),
            self.event("response.output_item.added", output_index=0, item=item),
            self._of_part("response.content_part.added", part=_part("")),
        ]

    def text(self, index: int, text: str, sampled: SampledTokens) -> list[JsonObject]:
        return [self._of_part("response.output_text.delta", delta=text, logprobs=[])]

    def tail(self, index: int, choice: Choice, rest: SampledTokens) -> list[JsonObject]:
        return [
            self._of_part("response.output_text.done", text=choice.text, logprobs=[]),
            self._of_part("response.content_part.done", part=_part(choice.text)),
        ]

    def end(self, response: JsonObject) -> list[JsonObject]:
        """``response`` as it is stored."""
        return [
            self.event("response.output_item.done", output_index=0, item=response["output"][0]),
            self.event(f"response.{response['status']}", response=response),
        ]

    def event(self, type: str, **fields: object) -> JsonObject:
        self._number += 1
        return {"type": type, "sequence_number": self._number - 1} | fields

    def _of_part(self, type: str, **fields: object) -> JsonObject:
        return self.event(type, item_id=self.message_id, **PLACE, **fields)


class ResponseStream(Stream):
    """``shown`` makes the response of a choice and its usage; it is passed to ``store`` before the last event is sent,
    so that whoever reads that can retrieve it."""

    shown: Callable[[Choice, JsonObject], JsonObject]
    store: Callable[[JsonObject], None]

    async def _texts(self, agreed: Queue, work: asyncio.Task[list[Generated]]) -> AsyncIterator[str]:
        async for event in super()._texts(agreed, work):
            yield event
        generated = work.result()
        response = self.shown(generated[0].choices[0], usage_object(self.generations, generated))
        await run_in_threadpool(self.store, response)
        yield self._chunk(cast(ResponseEvents, self.chunks).end(response))

    def _chunk(self, choices: list[JsonObject]) -> str:
        return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in choices)


def _part(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": []}
