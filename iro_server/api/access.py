"""The gate before every route: who calls, whether they may, how often; and a line in the audit log for each request."""

from __future__ import annotations

import json
import re
import secrets
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import unquote, urlsplit

from cachetools import TTLCache
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iro_server import JsonObject
from iro_server.access import scopes
from iro_server.access.audit import MAX_PATH, audit_log
from iro_server.access.key_requirement import KEY_SECONDS, KeyRequirement
from iro_server.access.rates import Allowance, RateLimitExceeded, Rates
from iro_server.api.context import Caller
from iro_server.api.errors import DATABASE_AWAY, APIError, answer, api_error, storage_failure
from iro_server.api.page import is_page
from iro_server.concurrency.executors import in_thread
from iro_server.settings import is_loopback
from iro_server.store import keys
from iro_server.store.database import find
from iro_server.store.tables import DEFAULT_PROJECT, ApiKey
from iro_server.telemetry import metrics, request, tracing
from iro_server.telemetry.request import CHARGED_KEY

OPEN = ("/v1/health", "/v1/health/live", "/v1/health/ready")  # for probes, which have no key
METRICS = "/metrics"
REPORT = re.compile(r"/v1/evals/[^/]+/runs/[^/]+/report")  # opened from a link: the browser asks for the key
THREADS = 16  # that read keys from the database
METHODS = ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS")


class Access:
    """ASGI middleware. ``internal_key`` is the server's own, for its graders: it acts for the project it names."""

    def __init__(self, app: ASGIApp, required: KeyRequirement, internal_key: str) -> None:
        self.app, self.required, self.internal_key = app, required, internal_key
        self.settings, self.sessions = required.settings, required.sessions
        self.rates = Rates()
        self.threads = ThreadPoolExecutor(THREADS, "keys")  # which no request's own work takes
        self.audit = audit_log(self.settings)
        # A revoked key works until its entry expires.
        self._identities: TTLCache[str, tuple[Caller, Allowance] | None] = TTLCache(4096, KEY_SECONDS)
        self._allowances: TTLCache[str, Allowance | None] = TTLCache(4096, KEY_SECONDS)  # by key id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        record = Record(scope)
        request.set_current(record.current)
        tracing.tag("iro.request_id", record.id)
        try:
            await self._answer(scope, receive, record.through(send), record)
        except Exception:
            record.status = record.status or 500
            raise
        finally:
            self.audit.info(record.line())
            record.count()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        counted = ExitStack()
        try:
            caller, allowance = await self._identify(scope)
            record.caller = scope["state"]["caller"] = caller
            scope["state"] |= {
                "rates": self.rates,
                "allowance": allowance,
                "headers": record.headers,
                "counted": counted,
            }
            if allowance:
                record.current.charged_key = allowance.key_id
            if allowance and caller.key_id == allowance.key_id:  # else it is part of a request that was counted
                self.rates.enter(allowance, record.headers)
                counted.callback(self.rates.leave, allowance)
        except (APIError, RateLimitExceeded) as error:
            return await answer(api_error(error))(scope, receive, send)
        except DATABASE_AWAY as error:  # the app's handlers see only what is raised inside of it
            return await storage_failure(error)(scope, receive, send)
        with counted:
            await self.app(scope, receive, send)

    async def _identify(self, scope: Scope) -> tuple[Caller, Allowance | None]:
        headers = Headers(scope=scope)
        is_link = scope["method"] == "GET" and REPORT.fullmatch(scope["path"]) is not None
        secret = _secret(headers.get("authorization", ""), is_link)
        if secret and secrets.compare_digest(secret.encode(), self.internal_key.encode()):
            caller = Caller(unquote(headers.get("openai-project", DEFAULT_PROJECT)), "internal")
            return caller, await self._charged(headers.get(CHARGED_KEY))
        if scope["path"] in OPEN or is_page(scope["path"]) or (scope["path"] == METRICS and self.settings.metrics_open):
            return Caller(), None
        if not await in_thread(self.threads, self.required):
            self._check_host(headers.get("host", ""))
            self._check_origin(headers)
            return Caller(), None
        if not secret:
            in_browser = ", or give it to your browser as the password, with any user name" * is_link
            message = f"You didn't provide an API key. Send it as 'Authorization: Bearer KEY'{in_browser}."
            raise _unauthorized(message, is_link=is_link)
        try:
            identity = self._identities[secret]
        except KeyError:
            identity = self._identities[secret] = await in_thread(self.threads, self._look_up, secret)
        if identity is None:
            raise _unauthorized("Incorrect API key provided.", "invalid_api_key", is_link)
        _check_scope(identity[0], scope)
        return identity

    async def _charged(self, key_id: str | None) -> Allowance | None:
        """The allowance of the key whose request a grader grades; None where there is none."""
        if key_id is None:
            return None
        try:
            return self._allowances[key_id]
        except KeyError:
            allowance = self._allowances[key_id] = await in_thread(self.threads, self._allowance_of, key_id)
            return allowance

    def _allowance_of(self, key_id: str) -> Allowance | None:
        with self.sessions() as session:
            key = find(session, ApiKey, key_id)
        return self._allowance(key) if key else None

    def _look_up(self, secret: str) -> tuple[Caller, Allowance] | None:
        key = keys.by_secret(self.sessions, secret)
        if key is None:
            return None
        return Caller(key.project, key.id, key.scopes), self._allowance(key)

    def _allowance(self, key: ApiKey) -> Allowance:
        names = ("requests_per_minute", "tokens_per_minute", "concurrency")
        limits = {name: getattr(key, name) or getattr(self.settings, name) for name in names}
        return Allowance(key.id, **limits)

    def _check_host(self, host: str) -> None:
        """Where no key is asked for, a web page whose name was made to resolve to this machine must not get in."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if is_loopback(self.settings.host) and not is_loopback(name.strip("[]")):
            raise APIError(403, f"This server answers to localhost only, not to {host!r}.", code="host_not_allowed")

    def _check_origin(self, headers: Headers) -> None:
        """Where no key is asked for, a page of another site must not send a form, which no browser asks about first."""
        if (origin := headers.get("origin")) is None:
            return
        try:
            url = urlsplit(origin)
            here = is_loopback(self.settings.host)
            same = is_loopback(url.hostname or "") if here else url.netloc == headers.get("host")
        except ValueError:  # no URL
            same = False
        if not same:
            raise APIError(403, f"This server answers no page of {origin!r}.", code="origin_not_allowed")


class Record:
    """What the audit log tells of one request."""

    def __init__(self, scope: Scope) -> None:
        self.current = request.Current(f"req_{secrets.token_hex(16)}")
        self.id, self.time, self.scope = self.current.id, time.time(), scope
        self.method, self.path = scope["method"], scope["path"]
        self.client = (scope.get("client") or ("", 0))[0]
        self.caller: Caller | None = None
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        scope.setdefault("state", {})["request_id"] = self.id

    def through(self, send: Send) -> Send:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = self.id
                headers["openai-processing-ms"] = str(round(self._milliseconds()))
                headers.update(self.headers)
            await send(message)

        return noted

    def line(self) -> str:
        fields: JsonObject = {"time": round(self.time, 3), "request": self.id, "client": self.client}
        fields |= {"method": self.method[:MAX_PATH], "path": self.path[:MAX_PATH]}
        fields |= {"status": self.status, "ms": round(self._milliseconds())}
        if self.caller:
            fields |= {"project": self.caller.project, "key": self.caller.key_id}
        return json.dumps(fields)

    def count(self) -> None:
        route = getattr(self.scope.get("route"), "path", "none")  # without /v1; "none" where none was found
        method = self.method if self.method in METHODS else "other"  # a client may make up any number of them
        seconds = metrics.REQUEST_SECONDS.labels(method, route, self.status or 0)
        seconds.observe(time.monotonic() - self.current.started)

    def _milliseconds(self) -> float:
        return 1000 * (time.monotonic() - self.current.started)


def _check_scope(caller: Caller, scope: Scope) -> None:
    """403 if the caller's key lacks the scope that the request needs."""
    sufficient = scopes.sufficient(scope["method"], scope["path"])
    if caller.scopes is not None and not set(sufficient) & set(caller.scopes):
        needed = " or ".join(f"'{each}'" for each in sufficient)
        held = ", ".join(caller.scopes)
        message = f"This key has the scope {held}; this request needs a key with the scope {needed}."
        raise APIError(403, message, code="insufficient_scope")


def _secret(authorization: str, is_link: bool) -> str:
    """The API key of the header, "" where it has none. A browser that asks for it sends it as a password, which it
    also adds to what pages of other sites ask for: it counts for links alone, which change nothing."""
    scheme, _, sent = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return sent.strip()
    if not is_link or scheme.lower() != "basic":
        return ""
    try:
        return b64decode(sent).decode().partition(":")[2].strip()
    except ValueError:  # no base64, or no text
        return ""


def _unauthorized(message: str, code: str | None = None, is_link: bool = False) -> APIError:
    asks = 'Basic realm="Iro", charset="UTF-8"' if is_link else "Bearer"
    return APIError(401, message, code=code, headers={"WWW-Authenticate": asks})
