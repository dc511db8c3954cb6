"""Answering while work goes on: text as it settles, and work dropped when nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from iro_server import JsonObject
from iro_server.api.errors import ANSWERED, api_error, internal_error
from iro_server.api.generation import Choice, Generated, Generation, OnAgreed, generate
from iro_server.api.generation_slot import GenerationSlot
from iro_server.api.options import usage_object
from iro_server.api.picking import pick
from iro_server.api.search_trace import RoundWriter
from iro_server.api.text import GrowingText
from iro_server.concurrency.disconnect import unless_gone
from iro_server.concurrency.tasks import gather_or_cancel
from iro_server.decoding.base import Round
from iro_server.decoding.beam import SampledTokens

log = logging.getLogger("iro.api")
UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # else a proxy may hold a stream's events back
COMMENT_SECONDS = 5.0
Part = tuple[range, SampledTokens]  # numbers of choices, and the tokens that they begin with
TracedRound = tuple[int, Round]  # the prompt's number, and a round of its search
Queue = asyncio.Queue[Part | TracedRound | None]
OnTracedRound = Callable[[int, Round], None]


async def whole(request: Request, generations: list[Generation], slot: GenerationSlot) -> list[Generated]:
    """What the generations come to; their rows are free again at once where the client goes away."""
    try:
        return await unless_gone(request.receive, generate_all(generations, slot))
    finally:
        slot.ticket.release()


async def generate_all(
    generations: list[Generation],
    slot: GenerationSlot,
    on_agreed: OnAgreed | None = None,
    on_round: OnTracedRound | None = None,
) -> list[Generated]:
    """All prompts at once, once admitted. ``on_agreed`` counts choices through: prompt 0's n, then prompt 1's, …
    ``on_round``: called with the rounds of the prompts whose search is traced.

    Their rows are free once all is computed: a client may take longer to read it, and a grader may ask this server.
    Raises DeadlineExceeded, ServerStopping.
    """
    async with slot.context.deadlines.until(slot.deadline):
        try:
            await slot.admitted()
            works = [
                generate(each, i * each.n, on_agreed, partial(on_round, i) if on_round and each.traced else None)
                for i, each in enumerate(generations)
            ]
            generated = await gather_or_cancel(works)
        finally:
            slot.ticket.release()
        pairs = zip(generations, generated, strict=True)
        return await gather_or_cancel(pick(each, choices, slot.context) for each, choices in pairs)


class _EndingResponse(StreamingResponse):
    """Frees the slot and ends the work also where the client left: before the first event, when no generator ever ran,
    or while an event was being sent."""

    def __init__(self, content: AsyncGenerator[str], media_type: str, slot: GenerationSlot) -> None:
        super().__init__(content, headers=UNBUFFERED, media_type=media_type)
        self.content, self.slot = content, slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.slot.ticket.release()
            await self.content.aclose()


def ascii_json(content: object) -> str:
    """What users or models wrote may hold half a surrogate pair, which only an escape can spell. Requests, and rows of
    earlier versions, may hold numbers that are not finite: they are null."""
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError:
        finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
        return json.dumps(finite, allow_nan=False, separators=(",", ":"))


class AsciiJSON(JSONResponse):
    """Of ``ascii_json``."""

    def render(self, content: object) -> bytes:
        return ascii_json(content).encode()


class Chunks(Protocol):
    """How a route words its stream. ``head`` gives the ``choices`` of a chunk, the others a chunk's one choice each."""

    def head(self, index: int) -> list[JsonObject] | None: ...

    def text(self, index: int, text: str, sampled: SampledTokens) -> list[JsonObject]:
        """``sampled``: the tokens that the text ends, since those of the chunk before."""
        ...

    def tail(self, index: int, choice: Choice, rest: SampledTokens) -> list[JsonObject]:
        """``rest``: the choice's tokens since those of the chunk before."""
        ...


@dataclass
class Stream:
    """Server-sent events of one request. ``frame`` is what every chunk carries: id, object, created, model.

    ``when_generated`` is called, in another thread, before the stream ends: whoever read it can retrieve what that
    stored.
    """

    generations: list[Generation]
    chunks: Chunks
    frame: JsonObject
    include_usage: bool
    slot: GenerationSlot
    when_generated: Callable[[list[Generated]], None] | None = None

    def response(self) -> StreamingResponse:
        return _EndingResponse(self._events(), media_type="text/event-stream", slot=self.slot)

    async def _events(self) -> AsyncGenerator[str]:
        agreed: Queue = asyncio.Queue()
        generated = generate_all(
            self.generations,
            self.slot,
            lambda numbers, sampled: agreed.put_nowait((numbers, sampled)),
            lambda prompt, selection: agreed.put_nowait((prompt, selection)),
        )
        work = asyncio.create_task(generated)
        work.add_done_callback(lambda _: agreed.put_nowait(None))
        try:
            async for comment in self._comments(work):
                yield comment
            async for event in self._texts(agreed, work):
                yield event
        except ANSWERED as error:
            yield _event(api_error(error).envelope())
        except Exception as error:  # the status is sent: all that is left is to say so, and go on serving others
            log.exception("a stream broke off")
            yield _event(internal_error(error).envelope())
        finally:
            work.cancel()  # also where the client went away
        yield "data: [DONE]\n\n"

    async def _comments(self, work: asyncio.Task[list[Generated]]) -> AsyncIterator[str]:
        """One every few seconds while the request waits for its slot, so that nothing between takes it for dead."""
        admitted = asyncio.create_task(self.slot.ticket.admitted.wait())
        try:
            while not await _first_of({admitted, work}, COMMENT_SECONDS):
                yield ": waiting\n\n"
        finally:
            admitted.cancel()

    async def _texts(self, agreed: Queue, work: asyncio.Task[list[Generated]]) -> AsyncIterator[str]:
        count = self.generations[0].n
        texts: defaultdict[range, GrowingText] = defaultdict(partial(GrowingText, self.generations[0].detokenizer))
        sent = ["" for _ in range(count * len(self.generations))]
        num_sent = [0 for _ in sent]  # tokens
        for index in range(len(sent)):
            if head := self.chunks.head(index):
                yield self._chunk(head)
        writers = [RoundWriter(each.detokenizer, each.scorer is not None) for each in self.generations]
        while (part := await agreed.get()) is not None:
            if isinstance(part[1], Round):
                prompt, selection = part
                yield self._search({"prompt": prompt} | writers[prompt].write(selection))
                continue
            numbers, sampled = part
            settled, num_settled = texts[numbers].settled(sampled.tokens)
            for index in numbers:
                if len(settled) > len(sent[index]):
                    new = settled[len(sent[index]) :], sampled[num_sent[index] : num_settled]
                    for worded in self.chunks.text(index, *new):
                        yield self._chunk([worded])
                    sent[index], num_sent[index] = settled, num_settled
        generated = await work
        for prompt, each in enumerate(generated):
            if self.generations[prompt].traced and not self.generations[prompt].independent:
                yield self._search({"prompt": prompt, "answers": [choice.beam for choice in each.choices]})
        for index, choice in enumerate(choice for each in generated for choice in each.choices):
            rest = choice.sampled[num_sent[index] :]
            if text := choice.text[len(sent[index]) :]:
                for worded in self.chunks.text(index, text, rest):
                    yield self._chunk([worded])
                rest = rest[len(rest.tokens) :]
            for worded in self.chunks.tail(index, choice, rest):
                yield self._chunk([worded])
        if self.when_generated is not None:
            await run_in_threadpool(self.when_generated, generated)
        if self.include_usage:
            yield _event(self.frame | {"choices": [], "usage": usage_object(self.generations, generated)})

    def _search(self, event: JsonObject) -> str:
        usage = {"usage": None} if self.include_usage else {}
        return _event(self.frame | {"choices": [], "search": event} | usage)

    def _chunk(self, choices: list[JsonObject]) -> str:
        usage = {"usage": None} if self.include_usage else {}
        return _event(self.frame | {"choices": choices} | usage)


async def _first_of(tasks: set[asyncio.Task[object]], seconds: float) -> bool:
    """Whether one of the tasks is done within so many seconds."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


def _event(data: JsonObject) -> str:
    return f"data: {ascii_json(data)}\n\n"
