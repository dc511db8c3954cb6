"""Servers of one model, over HTTP: which of them is asked, and what becomes of one that dies, hangs or talks nonsense.

A request to decode changes nothing where it is sent and carries its seed: whatever fails is asked again elsewhere. A
replica that failed ``FAILURES`` times in a row, or does not answer probes while it should be decoding, is left alone
until a probe finds it well again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Container, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import httpx

from iro_server import JsonObject
from iro_server.concurrency.tasks import gather_or_cancel
from iro_server.engines.endpoints import KEY_VARIABLE, EngineRefused, EngineUnavailable, base_url
from iro_server.engines.vllm_adapters import Adapter
from iro_server.telemetry.metrics import CACHED_TOKENS, SENT_TOKENS

log = logging.getLogger("iro.engine")
FAILURES = 3  # in a row, and a replica is left alone
ALONE = 4  # so many times the silence is borne with a replica that is the last
STICKY_ROWS = 64  # a session stays on its replica until it has so many rows more than the least loaded one
CONNECT = 5.0  # seconds
MOST_ADAPTERS = 64  # loaded on one replica
COMPLETIONS, GENERATE = "/completions", "/inference/v1/generate"
PAUSE = 0.2  # seconds between rounds of asking all replicas
Answer = TypeVar("Answer")


class ReplicaFailure(Exception):
    """An answer that did not come, or that cannot be used. ``settled``: asking again will not change it. ``counts``:
    towards the failures after which the replica is left alone."""

    def __init__(self, message: str, settled: bool = False, counts: bool = True) -> None:
        super().__init__(message)
        self.settled, self.counts = settled, counts


@dataclass(frozen=True)
class Timing:
    """In seconds. ``answer``: the longest that a replica may take for one. ``patience``: how long a caller waits, from
    the first failure on, for a replica that answers. ``probe_every``: how often a replica that decodes, or is left
    alone, is asked whether it lives. ``silence``: how long one may decode without answering that."""

    answer: float = 600.0
    patience: float = 30.0
    probe_every: float = 2.0
    silence: float = 15.0


@dataclass(eq=False)
class Replica:
    """``url``: its base, ending in /v1. ``rows``: being decoded. ``down``: set while it is left alone."""

    url: str
    rows: int = 0
    requests: int = 0
    failures: int = 0  # in a row
    down: asyncio.Event = field(default_factory=asyncio.Event)
    watch: asyncio.Task[None] | None = None
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    adapters: OrderedDict[str, None] = field(default_factory=OrderedDict)  # that it has loaded, last used last

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
        return {"up": not self.down.is_set()} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Call(Generic[Answer]):
    """``read`` makes an answer of the payload, or raises. ``rows``: what it weighs. ``adapter``: what it names as its
    model."""

    method: str
    path: str
    body: JsonObject | None
    read: Callable[[JsonObject], Answer]
    rows: int
    adapter: Adapter | None = None


def num_rows(body: JsonObject) -> int:
    """Rows that a request for completions draws: ``n`` of each prompt, where there is a list of them."""
    if "sampling_params" in body:
        return int(body["sampling_params"]["n"])
    prompt = body["prompt"]
    num_prompts = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], list) else 1
    return int(body["n"]) * num_prompts


class Replicas:
    """Use it from one event loop. ``probe``: from a replica's base URL to the one that tells whether it lives."""

    def __init__(self, urls: Sequence[str], key: str | None, timing: Timing, probe: Callable[[str], str]) -> None:
        self.all = [Replica(base_url(url)) for url in urls]
        self.timing, self.probe = timing, probe
        self.client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            timeout=httpx.Timeout(timing.answer, connect=CONNECT),
        )

    async def close(self) -> None:
        for replica in self.all:
            if replica.watch:
                replica.watch.cancel()
        await self.client.aclose()

    async def models(self, patience: float) -> list[JsonObject]:
        """What the first replica that answers serves; errors as of ``complete``."""

        def read(payload: JsonObject) -> list[JsonObject]:
            models = payload["data"]
            if not models or not all(isinstance(model["id"], str) for model in models):
                raise ValueError("no models")
            return models

        return (await self._ask(_Call("GET", "/models", None, read, 0), None, patience))[0]

    async def complete(
        self,
        body: JsonObject,
        read: Callable[[JsonObject], Answer],
        prefer: Replica | None = None,
        adapter: Adapter | None = None,
        path: str = COMPLETIONS,
    ) -> tuple[Answer, Replica]:
        """What ``read`` makes of the answer to ``body`` (it raises for one that makes no sense), and who gave it.

        EngineRefused where the request is refused as wrong, EngineUnavailable where no replica answers within the
        patience. ``prefer``: the replica that has the prompt in its cache. ``adapter``: loaded on the replica first.
        """
        call = _Call("POST", path, body, read, num_rows(body), adapter)
        return await self._ask(call, prefer, self.timing.patience)

    async def take(self, path: str, body: JsonObject) -> bool:
        """Whether no server that answers refuses such a request as one that it does not know."""

        async def takes(replica: Replica) -> bool:
            try:
                response = await self._post(replica, path, body)
            except ReplicaFailure:
                return True  # the others tell
            return response.status_code not in (400, 403, 404, 405, 422)

        return all(await gather_or_cancel(takes(replica) for replica in self.all))

    async def _ask(self, call: _Call[Answer], prefer: Replica | None, patience: float) -> tuple[Answer, Replica]:
        clock = asyncio.get_running_loop().time
        deadline: float | None = None
        failed: dict[Replica, ReplicaFailure] = {}  # in this round of asking all
        why: ReplicaFailure | None = None
        while True:
            replica = self._choose(prefer, failed)
            if replica is not None:
                try:
                    return await self._answer(replica, call), replica
                except ReplicaFailure as failure:
                    if failure.counts:
                        self._failed(replica, failure)
                    failed[replica] = why = failure
            deadline = deadline or clock() + patience
            settled = len(failed) == len(self.all) and all(failure.settled for failure in failed.values())
            if settled or clock() >= deadline:
                raise EngineUnavailable(f"no engine answers: {why or 'each has failed before'}")
            if replica is None:
                await asyncio.sleep(PAUSE)
                failed.clear()

    def _choose(self, prefer: Replica | None, failed: Container[Replica]) -> Replica | None:
        able = [replica for replica in self.all if not replica.down.is_set() and replica not in failed]
        least_loaded = min(able, key=lambda replica: (replica.rows, replica.requests), default=None)
        if prefer in able and prefer and least_loaded and prefer.rows - least_loaded.rows < STICKY_ROWS:
            return prefer
        return least_loaded

    async def _answer(self, replica: Replica, call: _Call[Answer]) -> Answer:
        replica.rows += call.rows
        replica.requests += 1
        self._watch(replica)
        try:
            if call.adapter:
                await _unless(replica.down, self._load(replica, call.adapter))
            payload = await _unless(replica.down, self._payload(replica, call))
        finally:
            replica.rows -= call.rows
        try:
            answer = call.read(payload)
            replica.count(payload.get("usage") or {})
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ReplicaFailure(f"{replica.url} gave an answer that makes no sense: {error!r}") from error
        replica.failures = 0
        return answer

    async def _load(self, replica: Replica, adapter: Adapter) -> None:
        """Have the replica serve the adapter; the one that was not asked for longest gives way."""
        async with replica.loading:
            if adapter.name not in replica.adapters:
                body: JsonObject = {"lora_name": adapter.name, "lora_path": str(adapter.path)}
                response = await self._post(replica, "/load_lora_adapter", body)
                if not response.is_success and "already been loaded" not in response.text:
                    message = f"{replica.url} cannot load the adapter of a model: {_message(response)}"
                    hint = " (start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True)"
                    raise ReplicaFailure(
                        message + (hint if response.status_code == 404 else ""), settled=True, counts=False
                    )
            replica.adapters[adapter.name] = None
            replica.adapters.move_to_end(adapter.name)
            while len(replica.adapters) > MOST_ADAPTERS:
                oldest, _ = replica.adapters.popitem(last=False)
                await self._post(replica, "/unload_lora_adapter", {"lora_name": oldest})

    async def _post(self, replica: Replica, path: str, body: JsonObject) -> httpx.Response:
        try:
            return await self.client.post(replica.address(path), json=body)
        except httpx.HTTPError as error:
            raise ReplicaFailure(f"{replica.url} does not answer ({type(error).__name__}: {error})") from error

    async def _payload(self, replica: Replica, call: _Call[Answer]) -> JsonObject:
        where = replica.url
        try:
            async with asyncio.timeout(self.timing.answer):
                response = await self.client.request(call.method, replica.address(call.path), json=call.body)
        except TimeoutError as error:
            raise ReplicaFailure(f"{where} took longer than {self.timing.answer:g} s") from error
        except httpx.HTTPError as error:
            raise ReplicaFailure(f"{where} does not answer ({type(error).__name__}: {error})") from error
        if response.status_code in (400, 413, 422):
            raise EngineRefused(where, _message(response))
        if response.status_code == 403 and call.path == GENERATE:
            raise ReplicaFailure(f"{where} was started without {GENERATE}: {_message(response)}", settled=True)
        if response.status_code in (401, 403):
            raise ReplicaFailure(f"{where} refuses the key ({KEY_VARIABLE}): {_message(response)}", settled=True)
        if response.status_code == 404 and call.adapter:  # the server was started again since it loaded the adapter
            replica.adapters.pop(call.adapter.name, None)
            raise ReplicaFailure(f"{where} has lost an adapter, which is loaded again", counts=False)
        if response.status_code == 404:
            raise ReplicaFailure(f"{replica.address(call.path)} is not there: {_message(response)}", settled=True)
        if not response.is_success:
            raise ReplicaFailure(f"{where} answered {response.status_code}: {_message(response)}")
        try:
            payload: JsonObject = response.json()
        except ValueError as error:
            raise ReplicaFailure(f"{where} gave an answer that is no JSON") from error
        return payload

    def _failed(self, replica: Replica, failure: ReplicaFailure) -> None:
        replica.failures += 1
        log.warning("%s", failure)
        if replica.failures >= FAILURES and not replica.down.is_set():
            log.error("%s is left alone until it is well again", replica.url)
            replica.down.set()
        self._watch(replica)

    def _watch(self, replica: Replica) -> None:
        """Probe the replica for as long as it decodes or is left alone."""
        if replica.watch is None or replica.watch.done():
            replica.watch = asyncio.create_task(self._probe_on(replica))

    async def _probe_on(self, replica: Replica) -> None:
        clock = asyncio.get_running_loop().time
        heard = clock()
        while True:
            await asyncio.sleep(self.timing.probe_every)
            if not replica.rows and not replica.down.is_set():
                return
            if await self._alive(replica):
                heard = clock()
                if replica.down.is_set():
                    log.info("%s is well again", replica.url)
                    replica.down.clear()
                    replica.failures = FAILURES - 1  # one more, and it is left alone again
            elif clock() - heard > self._silence(replica) and not replica.down.is_set():
                log.error("%s does not answer probes: it is left alone until it does", replica.url)
                replica.down.set()

    def _silence(self, replica: Replica) -> float:
        """How long its probes may go unanswered: longer where no other could take over what it decodes."""
        has_substitute = any(peer is not replica and not peer.down.is_set() for peer in self.all)
        return self.timing.silence * (1 if has_substitute else ALONE)

    async def _alive(self, replica: Replica) -> bool:
        try:
            async with asyncio.timeout(self.timing.silence / 3):
                return (await self.client.get(self.probe(replica.url))).is_success
        except (TimeoutError, httpx.HTTPError):
            return False


async def _unless(down: asyncio.Event, work: Coroutine[object, None, Answer]) -> Answer:
    """``work``'s result; ReplicaFailure, and no more of it, once ``down`` is set."""
    task, ended = asyncio.ensure_future(work), asyncio.ensure_future(down.wait())
    try:
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ReplicaFailure("the replica stopped answering while it decoded")
        return task.result()
    finally:
        task.cancel()
        ended.cancel()


def _message(response: httpx.Response) -> str:
    """The error's own words, in OpenAI's envelope or none."""
    try:
        payload = response.json()
        return str((payload.get("error") or payload)["message"])[:500]
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError):
        return response.text[:200]
