"""A response as server-sent events, each of its own type and numbered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import cast

from fastapi.concurrency import run_in_threadpool

from iro_server import JsonObject
from iro_server.api.generation import Choice, Generated
from iro_server.api.options import usage_object
from iro_server.api.respond import Queue, Stream, ascii_json
from iro_server.api.tools import CallStream, ToolUse
from iro_server.decoding.beam import SampledTokens

PLACE = {"output_index": 0, "content_index": 0}


class ResponseEvents:
    """The events of one response, as the choices of a stream's chunks. ``started``: the response in progress.

    With tools, the message begins with its first text, and calls come whole, at the end.
    """

    def __init__(self, message_id: str, started: JsonObject, use: ToolUse | None = None) -> None:
        self.message_id, self.started = message_id, started
        self._calls = CallStream(use, 0) if use else None
        self._number = 0
        self._text = ""  # as the model wrote it so far
        self._sent: str | None = None  # of the message; None before it begins

    def head(self, index: int) -> list[JsonObject]:
        events = [
            self.event("response.created", response=self.started),
            self.event("response.in_progress", response=self.started),
        ]
        return events + ([] if self._calls else self._message_begun())

    def text(self, index: int, text: str, sampled: SampledTokens) -> list[JsonObject]:
        self._text += text
        return self._deltas([text] if self._calls is None else _contents(self._calls.text(self._text)))

    def tail(self, index: int, choice: Choice, rest: SampledTokens) -> list[JsonObject]:
        events: list[JsonObject] = []
        if self._calls is not None:
            events = self._deltas(_contents(self._calls.end(choice.text)))
            if self._sent is None and self._calls.use.read(choice.text)[1]:
                return events
        events += self._message_begun()
        return [
            *events,
            self._of_part("response.output_text.done", text=self._sent, logprobs=[]),
            self._of_part("response.content_part.done", part=_part(self._sent or "")),
        ]

    def end(self, response: JsonObject) -> list[JsonObject]:
        """``response`` as it is stored."""
        events = []
        for place, item in enumerate(response["output"]):
            if item["type"] == "function_call":
                events += self._call(place, item)
            events.append(self.event("response.output_item.done", output_index=place, item=item))
        return [*events, self.event(f"response.{response['status']}", response=response)]

    def _message_begun(self) -> list[JsonObject]:
        if self._sent is not None:
            return []
        self._sent = ""
        item = {"id": self.message_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        return [
            self.event("response.output_item.added", output_index=0, item=item),
            self._of_part("response.content_part.added", part=_part("")),
        ]

    def _deltas(self, texts: list[str]) -> list[JsonObject]:
        events = []
        for text in texts:
            events += self._message_begun()
            self._sent = (self._sent or "") + text
            events.append(self._of_part("response.output_text.delta", delta=text, logprobs=[]))
        return events

    def _call(self, place: int, item: JsonObject) -> list[JsonObject]:
        begun, arguments = item | {"status": "in_progress", "arguments": ""}, item["arguments"]
        of_item = {"item_id": item["id"], "output_index": place}
        return [
            self.event("response.output_item.added", output_index=place, item=begun),
            self.event("response.function_call_arguments.delta", **of_item, delta=arguments),
            self.event("response.function_call_arguments.done", **of_item, arguments=arguments),
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
        return "".join(f"event: {event['type']}\ndata: {ascii_json(event)}\n\n" for event in choices)


def _contents(deltas: list[JsonObject]) -> list[str]:
    return [delta["content"] for delta in deltas if delta.get("content")]


def _part(text: str) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": []}
