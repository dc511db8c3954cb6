"""Asking a chat model by HTTP: many requests at once, each tried again while the server is busy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_when_event_set
from tenacity import sleep_using_event as sleep_until
from tenacity.wait import wait_random_exponential

from iro_server import JsonObject
from iro_server.graders.base import Flag
from iro_server.telemetry.request import CHARGED_KEY, charged_key

AT_ONCE = 16
ATTEMPTS = 5
TIMEOUT = 120.0  # seconds, of one attempt
LONGEST_WAIT = 30.0  # seconds between attempts, whatever the server asks for


@dataclass(frozen=True)
class Endpoint:
    """``url``: an OpenAI-compatible base URL; ``key`` "": none. ``project``: on whose behalf, of Iro's own server.

    ``quoted``: whether errors may quote what it answers. Not one that a caller chose: it may be anything.
    """

    url: str
    key: str = ""
    project: str | None = None
    quoted: bool = False

    def headers(self) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return headers | ({} if self.project is None else {"OpenAI-Project": self.project})

    def charge(self, key_id: str | None) -> dict[str, str]:
        """The header that counts a request's tokens against a key, of Iro's own server; others learn of no key."""
        return {} if self.project is None or key_id is None else {CHARGED_KEY: key_id}


@dataclass(frozen=True)
class Answer:
    """``text``: what the model said. ``error``: why it said nothing, and ``flag`` what OpenAI calls that. ``body``: the
    chat completion itself."""

    text: str = ""
    tokens: int = 0
    error: str | None = None
    flag: Flag = "model_grader_server_error"
    body: JsonObject = field(default_factory=dict)


class _Busy(Exception):
    """The server may well answer later, after ``wait`` seconds if it said so."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Asker:
    """Asks one endpoint, from any thread, until it is closed. Redirects are not followed: they could lead anywhere.

    ``route`` "completions": requests continue texts.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        backoff: float = 0.5,
        attempts: int | None = None,
        route: Literal["chat/completions", "completions"] = "chat/completions",
    ) -> None:
        self.endpoint, self._backoff, self._attempts = endpoint, backoff, attempts or ATTEMPTS
        self._url = f"{endpoint.url}/{route}"
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._under_way = 0

    def ask(self, requests: Sequence[JsonObject]) -> list[Answer]:
        """One answer to each chat completion request, in order."""
        charge = self.endpoint.charge(charged_key())
        with ThreadPoolExecutor(AT_ONCE, "asker") as threads:
            return list(threads.map(lambda request: self._ask(request, charge), requests))

    def close(self) -> None:
        """Ask nothing further, nor again. A request that waits for its answer ends with it, or with its timeout."""
        self._closed.set()
        self._hang_up(0)

    def _hang_up(self, ended: int) -> None:
        """Close the connections with the last request: who reads from one that another thread closes reads on."""
        with self._lock:
            self._under_way -= ended
            if self._closed.is_set() and not self._under_way and "_client" in self.__dict__:
                self._client.close()

    @cached_property
    def _client(self) -> httpx.Client:
        # The own server is next door, not behind the environment's proxy.
        return httpx.Client(
            headers=self.endpoint.headers(),
            timeout=httpx.Timeout(TIMEOUT, connect=10.0),
            limits=httpx.Limits(max_connections=AT_ONCE),
            trust_env=self.endpoint.project is None,
        )

    def _ask(self, request: JsonObject, charge: dict[str, str]) -> Answer:
        busy = Retrying(
            retry=retry_if_exception_type(_Busy),
            stop=stop_after_attempt(self._attempts) | stop_when_event_set(self._closed),
            wait=_wait(self._backoff),
            sleep=sleep_until(self._closed),
            reraise=True,
        )
        try:
            return busy(self._try, request, charge)
        except _Busy as error:
            return Answer(error="the grader is closed" if self._closed.is_set() else str(error))

    def _try(self, request: JsonObject, charge: dict[str, str]) -> Answer:
        with self._lock:
            if self._closed.is_set():
                return Answer(error="the grader is closed")
            client = self._client
            self._under_way += 1
        try:
            response = client.post(self._url, json=request, headers=charge)
        except httpx.RequestError as error:
            raise _Busy(f"no answer: {type(error).__name__} {error}".strip()) from None
        finally:
            self._hang_up(1)
        quoted = self.endpoint.quoted
        if response.status_code in (408, 409, 429) or response.status_code >= 500:
            raise _Busy(_refusal(response, quoted), _retry_after(response))
        if response.status_code != 200:
            return Answer(error=_refusal(response, quoted))
        return _read(response, quoted)


def _wait(backoff: float) -> Callable[[RetryCallState], float]:
    exponential = wait_random_exponential(backoff, LONGEST_WAIT)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        retry_after = error.wait if isinstance(error, _Busy) else None
        return exponential(state) if retry_after is None else min(retry_after, LONGEST_WAIT)

    return wait


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:  # absent, or a date, which servers of this kind do not send
        return None


def _refusal(response: httpx.Response, quoted: bool) -> str:
    if not quoted:
        return f"answered {response.status_code}"
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = response.text
    return f"answered {response.status_code}: {str(message)[:300]}"


def _read(response: httpx.Response, quoted: bool) -> Answer:
    try:
        body = response.json()
        (choice, *_), tokens = body["choices"], int((body.get("usage") or {}).get("total_tokens") or 0)
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        refusal, text = message.get("refusal"), message.get("content") or ""
    except (ValueError, LookupError, TypeError, AttributeError):
        return Answer(error="answered what is no chat completion" + (f": {response.text[:100]}" if quoted else ""))
    if refusal or choice.get("finish_reason") == "content_filter":
        error = "the model refused" + (f": {str(refusal or text)[:300]}" if quoted else "")
        return Answer("", tokens, error, "model_grader_refusal_error")
    return Answer(str(text), tokens, body=body)
