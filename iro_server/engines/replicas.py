"""Servers of one model, over HTTP: which of them is asked, and what becomes of one that dies, hangs or talks nonsense.

A request to decode changes nothing where it is sent and carries its seed: whatever fails is asked again elsewhere. A
replica at which ``FAILURES`` requests in a row failed gets no new ones until it answers a probe. One that answers no
probes, while it decodes or after a failure, is given up: the requests that it decodes are asked again elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic

import httpx

from iro_server import JsonObject
from iro_server.concurrency.tasks import gather_or_cancel
from iro_server.engines.adapter_holds import Adapter
from iro_server.engines.endpoints import KEY_VARIABLE, EngineRefused, EngineUnavailable, base_url
from iro_server.engines.replica import (
    COMPLETIONS,
    FAILURES,
    GENERATE,
    Answer,
    Attempts,
    Replica,
    ReplicaFailure,
    error_message,
    unless_silent,
)

log = logging.getLogger("iro.engine")
ALONE = 4  # so many times the silence is borne with a replica that is the last
STICKY_ROWS = 64  # a session stays on its replica until it has so many rows more than the least loaded one
CONNECT = 5.0  # seconds
MOST_ADAPTERS = 64  # loaded on one replica
NONSENSE = (KeyError, TypeError, ValueError, IndexError, AttributeError)  # of an answer of a wrong shape


@dataclass(frozen=True)
class Timing:
    """In seconds. ``answer``: the longest that a replica may take for one. ``patience``: how long a caller waits, from
    the first failure on, for a replica that answers. ``probe_every``: how often a replica that decodes, or is left
    alone, is asked whether it lives. ``silence``: how long it may not answer that."""

    answer: float = 600.0
    patience: float = 30.0
    probe_every: float = 2.0
    silence: float = 15.0


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


def _served_models(payload: JsonObject) -> list[JsonObject]:
    models = payload["data"]
    if not models or not all(isinstance(model["id"], str) for model in models):
        raise ValueError("no models")
    return models


MODELS = _Call("GET", "/models", None, _served_models, rows=1)  # with a row, its replica is probed meanwhile


def num_rows(body: JsonObject) -> int:
    """Rows that a request for completions draws: ``n`` of each prompt, where there is a list of them."""
    if "sampling_params" in body:
        return int(body["sampling_params"]["n"])
    prompt = body["prompt"]
    num_prompts = len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], list) else 1
    return int(body["n"]) * num_prompts


class Replicas:
    """Use it from one event loop. ``probe``: from a replica's base URL to the one that tells whether it lives.
    ``check``: called with the URL of a replica that answers only after the start, and the models that it serves; it
    raises ValueError where they do not fit."""

    def __init__(
        self,
        urls: Sequence[str],
        key: str | None,
        timing: Timing,
        probe: Callable[[str], str],
        check: Callable[[str, Sequence[JsonObject]], None],
    ) -> None:
        self.all = [Replica(base_url(url)) for url in urls]
        self.timing, self.probe, self.check = timing, probe, check
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
        return (await self._ask(MODELS, None, patience))[0]

    async def models_by_url(self) -> dict[str, list[JsonObject]]:
        """What each replica serves. One that does not tell is left alone until it does and ``check`` accepts it."""

        async def models(replica: Replica) -> list[JsonObject]:
            try:
                return await self._answer(replica, MODELS)
            except (ReplicaFailure, EngineRefused) as failure:
                log.warning("%s: it is left alone until it tells which model it serves", failure)
                replica.misfit, replica.left_alone = str(failure), True
                self._watch(replica)
                return []

        served = await gather_or_cancel(map(models, self.all))
        return {replica.url: models for replica, models in zip(self.all, served, strict=True) if models}

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

    async def stream(
        self,
        body: JsonObject,
        take: Callable[[JsonObject], None],
        prefer: Replica | None = None,
        adapter: Adapter | None = None,
    ) -> Replica:
        """The replica that answered ``body``, whose events ``take`` was called with as they came; it raises for one
        that makes no sense. ReplicaFailure where the replica fails or refuses: no other one is asked."""
        replica = self._choose(prefer, ())
        if replica is None:
            raise ReplicaFailure("no replica is up")
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        with self._busy(replica, num_rows(body)):
            if adapter:
                await unless_silent(replica, self._load(replica, adapter))
            await unless_silent(replica, self._events(replica, body, take))
        replica.failures = 0
        replica.answers += 1
        return replica

    async def _events(self, replica: Replica, body: JsonObject, take: Callable[[JsonObject], None]) -> None:
        try:
            async with self.client.stream("POST", replica.address(COMPLETIONS), json=body) as response:
                if not response.is_success:
                    await response.aread()
                    message = f"{replica.url} streams nothing ({response.status_code}): {error_message(response)}"
                    raise ReplicaFailure(message)
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        event = json.loads(line.removeprefix("data: "))
                        take(event)
                        replica.count(event.get("usage") or {})
        except httpx.HTTPError as error:  # whose text may quote the key
            raise ReplicaFailure(f"{replica.url} broke off a stream ({type(error).__name__})") from None
        except NONSENSE as error:
            raise ReplicaFailure(f"{replica.url} streams what makes no sense: {error!r}") from error

    @contextmanager
    def _busy(self, replica: Replica, rows: int) -> Iterator[None]:
        """The replica decodes so many rows, and is watched meanwhile."""
        replica.rows += rows
        replica.requests += 1
        self._watch(replica)
        try:
            yield
        finally:
            replica.rows -= rows

    async def take(self, path: str, body: JsonObject) -> bool:
        """Whether no server that is up refuses such a request as one that it does not know."""

        async def takes(replica: Replica) -> bool:
            try:
                response = await self._send(replica, "POST", path, body)
            except ReplicaFailure:
                return True  # the others tell
            return response.status_code not in (400, 403, 404, 405, 422)

        return all(await gather_or_cancel(takes(replica) for replica in self.all if replica.up))

    async def _ask(self, call: _Call[Answer], prefer: Replica | None, patience: float) -> tuple[Answer, Replica]:
        clock = asyncio.get_running_loop().time
        deadline: float | None = None
        attempts = Attempts()
        while True:
            replica = self._choose(prefer, attempts.failed)
            if replica is not None:
                try:
                    return await self._answer(replica, call), replica
                except ReplicaFailure as failure:
                    if attempts.add(replica, failure):
                        self._failed(replica, failure)
            deadline = deadline or clock() + patience
            if attempts.settled(self.all) or (replica is None and clock() >= deadline):
                raise EngineUnavailable(f"no engine answers: {attempts.last_failure or 'each has failed before'}")
            if replica is None:
                await asyncio.sleep(min(attempts.pause, deadline - clock()))
                attempts.begin_round()

    def _choose(self, prefer: Replica | None, failed: Container[Replica]) -> Replica | None:
        able = [replica for replica in self.all if replica.up and replica not in failed]
        least_loaded = min(able, key=lambda replica: (replica.rows, replica.requests), default=None)
        if prefer in able and prefer and least_loaded and prefer.rows - least_loaded.rows < STICKY_ROWS:
            return prefer
        return least_loaded

    async def _answer(self, replica: Replica, call: _Call[Answer]) -> Answer:
        with self._busy(replica, call.rows):
            if call.adapter:
                await unless_silent(replica, self._load(replica, call.adapter))
            payload = await unless_silent(replica, self._payload(replica, call))
        try:
            answer = call.read(payload)
            replica.count(payload.get("usage") or {})
        except NONSENSE as error:
            raise ReplicaFailure(f"{replica.url} gave an answer that makes no sense: {error!r}") from error
        replica.failures = 0
        replica.answers += 1
        return answer

    async def _load(self, replica: Replica, adapter: Adapter) -> None:
        """Have the replica serve the adapter; the one that was not asked for longest gives way."""
        async with replica.loading:
            if adapter.name not in replica.adapters:
                body: JsonObject = {"lora_name": adapter.name, "lora_path": str(adapter.path)}
                response = await self._send(replica, "POST", "/load_lora_adapter", body)
                if not response.is_success and "already been loaded" not in response.text:
                    message = f"{replica.url} cannot load the adapter of a model: {error_message(response)}"
                    hint = " (start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True)"
                    raise ReplicaFailure(
                        message + (hint if response.status_code == 404 else ""), settled=True, counts=False
                    )
            replica.adapters[adapter.name] = None
            replica.adapters.move_to_end(adapter.name)
            while len(replica.adapters) > MOST_ADAPTERS:
                await self._unload(replica, next(iter(replica.adapters)))

    async def unload(self, name: str) -> None:
        """The adapter, from every replica that has loaded it."""

        async def unload_from(replica: Replica) -> None:
            async with replica.loading:
                if name in replica.adapters:
                    await self._unload(replica, name)

        await gather_or_cancel(unload_from(replica) for replica in self.all)

    async def _unload(self, replica: Replica, name: str) -> None:
        """A replica that does not answer keeps an adapter that no request names any more."""
        del replica.adapters[name]
        try:
            await self._send(replica, "POST", "/unload_lora_adapter", {"lora_name": name})
        except ReplicaFailure as failure:
            log.warning("an adapter is not unloaded: %s", failure)

    async def _send(self, replica: Replica, method: str, path: str, body: JsonObject | None) -> httpx.Response:
        """ReplicaFailure without an answer. One that took too long is settled: it would take as long again."""
        try:
            async with asyncio.timeout(self.timing.answer):
                return await self.client.request(method, replica.address(path), json=body)
        except (TimeoutError, httpx.ReadTimeout) as error:
            raise ReplicaFailure(f"{replica.url} took longer than {self.timing.answer:g} s", settled=True) from error
        except httpx.LocalProtocolError:  # whose text may quote the key
            message = f"{replica.url} cannot be sent a request: its headers are malformed"
            raise ReplicaFailure(message, settled=True, counts=False) from None
        except httpx.HTTPError as error:
            raise ReplicaFailure(f"{replica.url} does not answer ({type(error).__name__}: {error})") from error

    async def _payload(self, replica: Replica, call: _Call[Answer]) -> JsonObject:
        where = replica.url
        response = await self._send(replica, call.method, call.path, call.body)
        if response.status_code in (400, 413, 422):
            raise EngineRefused(where, error_message(response))
        if response.status_code == 403 and call.path == GENERATE:
            raise ReplicaFailure(f"{where} was started without {GENERATE}: {error_message(response)}", settled=True)
        if response.status_code in (401, 403):
            raise ReplicaFailure(f"{where} refuses the key ({KEY_VARIABLE}): {error_message(response)}", settled=True)
        if call.adapter and _lacks_adapter(response, call):  # the server was started again since it loaded the adapter
            replica.adapters.pop(call.adapter.name, None)
            raise ReplicaFailure(f"{where} has lost an adapter, which is loaded again", counts=False)
        if response.status_code == 404:
            raise ReplicaFailure(f"{replica.address(call.path)} is not there: {error_message(response)}", settled=True)
        if not response.is_success:
            message = f"{where} answered {response.status_code}: {error_message(response)}"
            raise ReplicaFailure(message, status=response.status_code)
        try:
            payload: JsonObject = response.json()
        except ValueError as error:
            raise ReplicaFailure(f"{where} gave an answer that is no JSON") from error
        return payload

    def _failed(self, replica: Replica, failure: ReplicaFailure) -> None:
        replica.failures += 1
        log.warning("%s", failure)
        if replica.failures >= FAILURES and not replica.left_alone:
            log.error("%s is left alone until it is well again", replica.url)
            replica.left_alone = True
        self._watch(replica)

    def _watch(self, replica: Replica) -> None:
        """Probe the replica for as long as it decodes or is left alone, and once its last request has failed."""
        if replica.watch is None or replica.watch.done():
            replica.watch = asyncio.create_task(self._probe_on(replica))

    async def _probe_on(self, replica: Replica) -> None:
        clock = asyncio.get_running_loop().time
        heard = clock()
        while True:
            await asyncio.sleep(self.timing.probe_every)
            if not replica.rows and not replica.failures and replica.up:
                return
            if await self._alive(replica):
                heard = clock()
                if not replica.up:
                    replica.silent.clear()
                    if await self._is_fit(replica):
                        log.info("%s is well again", replica.url)
                        replica.left_alone = False
                        replica.failures = FAILURES - 1  # one more, and it is left alone again
                if replica.up and not replica.rows:
                    return
            elif clock() - heard > self._silence(replica) and not replica.silent.is_set():
                log.error("%s does not answer probes: it is left alone until it does", replica.url)
                replica.silent.set()

    async def _is_fit(self, replica: Replica) -> bool:
        """Whether ``check`` accepts what the replica serves, if the start did not learn it. The log says once why not:
        each probe that is answered checks again, since its server may have been started anew."""
        if replica.misfit is None:
            return True
        try:
            models = await self._answer(replica, MODELS)
            self.check(replica.url, models)
            replica.misfit = None
        except (ReplicaFailure, ValueError) as misfit:
            if str(misfit) != replica.misfit:
                log.error("%s; it is left alone until that changes", misfit)
            replica.misfit = str(misfit)
        return replica.misfit is None

    def _silence(self, replica: Replica) -> float:
        """How long its probes may go unanswered: longer where no other could take over what it decodes."""
        has_substitute = any(peer is not replica and peer.up for peer in self.all)
        return self.timing.silence * (1 if has_substitute else ALONE)

    async def _alive(self, replica: Replica) -> bool:
        """Whether a probe is answered, also by a gateway that lacks the route (404) or keeps it (401, 403)."""
        try:
            async with asyncio.timeout(self.timing.silence / 3):
                return (await self.client.get(self.probe(replica.url))).status_code < 500
        except (TimeoutError, httpx.HTTPError):
            return False


def _lacks_adapter(response: httpx.Response, call: _Call[Answer]) -> bool:
    """Whether the server does not know the call's adapter. vLLM names it then, which a server without the route
    GENERATE does not."""
    if response.status_code != 404 or call.adapter is None:
        return False
    return call.path != GENERATE or call.adapter.name in response.text
