"""Sends the deliveries that are due, signed by the scheme of standardwebhooks.com, which OpenAI's clients verify."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from standardwebhooks import Webhook

from iro_server import JsonObject
from iro_server.access.public_address import is_public
from iro_server.concurrency.executors import in_thread
from iro_server.concurrency.fair_executor import FairExecutor
from iro_server.concurrency.fair_queue import QueueFull
from iro_server.jobs import deliveries
from iro_server.store.database import Sessions
from iro_server.store.tables import WebhookEndpoint, now
from iro_server.telemetry.metrics import DELIVERIES

log = logging.getLogger("iro.webhooks")
TIMEOUT = 15.0  # seconds for one attempt, whatever the endpoint does
CONCURRENCY = 64  # attempts at once, one an endpoint, so that one that is slow holds up none but itself
POLL = 0.5
LOOKUP_THREADS, LOOKUPS_PER_PROJECT, LOOKUPS_WAITING = 32, 4, 64  # names resolved at once; of one project; that wait
GONE = 410  # what an endpoint says that wants no more of an event


class Unreachable(Exception):
    """No answer came from the endpoint. Why is for the operator: a caller could tell what listens where by it."""


class PrivateAddress(Unreachable):
    """The endpoint is on a private network, and was not called."""


@dataclass(frozen=True)
class Answer:
    """``public``: whether it came from a public address."""

    status: int
    public: bool

    @property
    def error(self) -> str | None:
        return None if 200 <= self.status < 300 else f"status {self.status}"


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def signed(endpoint: WebhookEndpoint, id: str, body: str) -> dict[str, str]:
    """The headers that prove ``body`` ours, by the old secret too while that one holds."""
    sent = datetime.now(UTC)
    keys = [endpoint.secret]
    if endpoint.old_secret is not None and (endpoint.old_until or 0) > now():
        keys.append(endpoint.old_secret)
    return {
        "content-type": "application/json",
        "user-agent": "Iro",
        "webhook-id": id,
        "webhook-timestamp": str(int(sent.timestamp())),
        "webhook-signature": " ".join(Webhook(key).sign(id, sent, body) for key in keys),
    }


def lookup_executor() -> FairExecutor:
    """Threads that resolve endpoints' names: a name server that is slow holds up its own project's webhooks alone."""
    return FairExecutor("webhook-names", LOOKUP_THREADS, LOOKUPS_PER_PROJECT, LOOKUPS_WAITING)


async def post(
    client: httpx.AsyncClient,
    lookups: FairExecutor,
    endpoint: WebhookEndpoint,
    id: str,
    payload: JsonObject,
    private: bool,
) -> Answer:
    """Send ``payload``. The answer's body is not read, and its redirect not followed. ``lookups``: see
    ``lookup_executor``.

    Unreachable where none comes; PrivateAddress where the endpoint is on a private network and not ``private``.
    """
    body = json.dumps(payload)
    try:
        url = httpx.URL(endpoint.url)
        host = url.raw_host.decode()
        headers = signed(endpoint, id, body) | {"host": url.netloc.decode()}
        async with asyncio.timeout(TIMEOUT):
            # The address that was looked at is the one that is called, whatever the name resolves to next.
            port = url.port or {"http": 80, "https": 443}[url.scheme]
            address = await _address(lookups, endpoint.project, host, port, private)
            target = url.copy_with(host=address)
            extensions = {"sni_hostname": host}
            request = client.build_request("POST", target, content=body, headers=headers, extensions=extensions)
            response = await client.send(request, stream=True)
            await response.aclose()
    except TimeoutError as error:
        raise Unreachable(f"no answer within {TIMEOUT:g} seconds") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error
    return Answer(response.status_code, is_public(address))


async def _address(lookups: FairExecutor, project: str, host: str, port: int, private: bool) -> str:
    try:
        addresses = await lookups.run(project, _resolve, host, port)
    except (OSError, UnicodeError, QueueFull) as error:  # UnicodeError: no name by the rules of DNS
        raise Unreachable(f"{host}: {error}") from error
    if not private and not all(map(is_public, addresses)):
        raise PrivateAddress(f"{host} has an address of a private network (IRO_PRIVATE_WEBHOOKS=true allows it)")
    return addresses[0]


def _resolve(host: str, port: int) -> list[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Sender:
    """One a server. ``run`` it as a task, until ``stopping`` is set. ``private``: see ``post``; called each time."""

    def __init__(
        self, sessions: Sessions, stopping: asyncio.Event, private: Callable[[], bool], lookups: FairExecutor
    ) -> None:
        self.sessions, self.stopping, self.private, self.lookups = sessions, stopping, private, lookups
        self.sending: dict[str, asyncio.Task[None]] = {}  # by endpoint
        self.thread = ThreadPoolExecutor(1, "webhooks")  # for the database

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=TIMEOUT, limits=httpx.Limits(max_keepalive_connections=0)) as client:
            while not self.stopping.is_set():
                try:
                    await self._start_due(client)
                except Exception:  # such as a database that is away: events must be sent once it is back
                    log.exception("webhooks could not be looked after; trying again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), POLL)
            tasks = list(self.sending.values())
            for task in tasks:
                task.cancel()  # its lease runs out, and the event is sent again
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_due(self, client: httpx.AsyncClient) -> None:
        busy = list(self.sending)
        attempts = await in_thread(self.thread, deliveries.claim, self.sessions, CONCURRENCY - len(busy), busy)
        for attempt in attempts:
            self.sending[attempt.endpoint.id] = asyncio.create_task(self._attempt(client, attempt))

    async def _attempt(self, client: httpx.AsyncClient, attempt: deliveries.Attempt) -> None:
        delivery, endpoint = attempt.delivery, attempt.endpoint
        try:
            try:
                private = await in_thread(self.thread, self.private)
                answer = await post(client, self.lookups, endpoint, delivery.id, delivery.payload, private)
                status, error = answer.status, answer.error
            except Unreachable as unreachable:
                status, error = 0, str(unreachable)
            DELIVERIES.labels("failed" if error else "delivered").inc()
            if error is not None:
                log.warning("%s to %s, attempt %d: %s", delivery.id, endpoint.id, delivery.attempts, error)
            await in_thread(self.thread, deliveries.settle, self.sessions, delivery, error, status == GONE)
        except Exception:  # such as a database that is away
            log.exception("%s: its attempt came to no end; it is made again once its lease has run out", delivery.id)
        finally:
            del self.sending[endpoint.id]
