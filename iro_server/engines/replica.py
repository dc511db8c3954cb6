"""One server of the model, and the attempts that a request makes at servers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, OrderedDict
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from iro_server import JsonObject
from iro_server.telemetry.metrics import CACHED_TOKENS, SENT_TOKENS

FAILURES = 3  # requests that fail in a row, and a replica is left alone
COMPLETIONS, GENERATE = "/completions", "/inference/v1/generate"
PAUSE, LONGEST_PAUSE = 0.2, 2.0  # seconds between rounds of asking all replicas
Answer = TypeVar("Answer")


class ReplicaFailure(Exception):
    """An answer that did not come, or that cannot be used. ``settled``: asking again will not change it. ``counts``:
    towards the failures after which the replica is left alone. ``status``: of the answer, where it is an error's."""

    def __init__(self, message: str, settled: bool = False, counts: bool = True, status: int | None = None) -> None:
        super().__init__(message)
        self.settled, self.counts, self.status = settled, counts, status


@dataclass(eq=False)
class Replica:
    """``url``: its base, ending in /v1. ``rows``: being decoded. ``left_alone``: no new request goes there.
    ``silent``: set while it answers no probes; requests that it decodes are given up then. ``misfit``: why it has been
    left alone since the start; None once what it serves is known to fit."""

    url: str
    rows: int = 0
    requests: int = 0
    answers: int = 0  # that were sound
    failures: int = 0  # in a row, at most one of each request
    left_alone: bool = False
    misfit: str | None = None
    silent: asyncio.Event = field(default_factory=asyncio.Event)
    watch: asyncio.Task[None] | None = None
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    adapters: OrderedDict[str, None] = field(default_factory=OrderedDict)  # that it has loaded, last used last

    @property
    def up(self) -> bool:
        return not self.left_alone and not self.silent.is_set()

    def address(self, path: str) -> str:
        """Of a route: GENERATE is beside the base."""
        return (self.url.removesuffix("/v1") if path == GENERATE else self.url) + path

    def count(self, usage: JsonObject) -> None:
        sent = int(usage.get("prompt_tokens") or 0)
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        self.prompt_tokens += sent
        self.cached_tokens += cached
        SENT_TOKENS.inc(sent)
        CACHED_TOKENS.inc(cached)

    def report(self) -> JsonObject:
        """For /v1/health, which anybody may read: no address. ``cached_tokens``: of ``prompt_tokens``, not read."""
        names = ("rows", "requests", "prompt_tokens", "cached_tokens")
        return {"up": self.up} | {name: getattr(self, name) for name in names}


class Attempts:
    """The attempts of one request. ``failed``: replicas that are not asked again in this round of asking all, or not at
    all where the failure is settled. ``pause``: seconds until the next round."""

    def __init__(self) -> None:
        self.failed: dict[Replica, ReplicaFailure] = {}
        self.last_failure: ReplicaFailure | None = None
        self.pause = PAUSE
        self._counted: set[Replica] = set()
        self._errors: Counter[Replica] = Counter()  # answers of status 500
        self._answers: dict[Replica, int] = {}  # that the replica had given at the first of them

    def add(self, replica: Replica, failure: ReplicaFailure) -> bool:
        """Whether the failure counts towards those after which the replica is left alone: one of each request does."""
        if failure.status == 500 and self._is_of_the_request(replica):
            failure = ReplicaFailure(f"{failure} ({FAILURES} times, while it answers other requests)", settled=True)
        self.failed[replica] = self.last_failure = failure
        if not failure.counts or replica in self._counted:
            return False
        self._counted.add(replica)
        return True

    def _is_of_the_request(self, replica: Replica) -> bool:
        """Whether the replica answers other requests while it fails at this one."""
        self._errors[replica] += 1
        answers = self._answers.setdefault(replica, replica.answers)
        return self._errors[replica] >= FAILURES and replica.answers > answers

    def settled(self, replicas: Sequence[Replica]) -> bool:
        """Whether asking any replica again changes nothing."""
        return all(replica in self.failed and self.failed[replica].settled for replica in replicas)

    def begin_round(self) -> None:
        if self.failed:
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
        self.failed = {replica: failure for replica, failure in self.failed.items() if failure.settled}


async def unless_silent(replica: Replica, work: Coroutine[object, None, Answer]) -> Answer:
    """``work``'s result; ReplicaFailure, and no more of it, once the replica is silent."""
    task, silent = asyncio.ensure_future(work), asyncio.ensure_future(replica.silent.wait())
    try:
        await asyncio.wait({task, silent}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ReplicaFailure(f"{replica.url} stopped answering while it decoded", counts=False)
        return task.result()
    finally:
        task.cancel()
        silent.cancel()


def error_message(response: httpx.Response) -> str:
    """The error's own words, in OpenAI's envelope or none."""
    try:
        payload = response.json()
        return str((payload.get("error") or payload)["message"])[:500]
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
        return response.text[:200]
