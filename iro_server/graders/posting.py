"""Posting JSON to an HTTP API: many requests at once, each tried again while the server is busy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

import httpx
from tenacity import RetryCallState, Retrying, retry_if_result, stop_when_event_set
from tenacity import sleep_using_event as sleep_until
from tenacity.stop import stop_base
from tenacity.wait import wait_random_exponential

from iro_server import JsonObject
from iro_server.graders.endpoint_limits import EndpointLimits, window_of
from iro_server.telemetry.request import CHARGED_KEY, charged_key

AT_ONCE = 16
ATTEMPTS = 5
TIMEOUT = 120.0  # seconds, of one attempt
FREE_RETRIES, RETRY_SHARE = 100, 0.1  # of a poster whose retries are bounded
LONGEST_WAIT = 30.0  # seconds between attempts, whatever the server asks for


@dataclass(frozen=True)
class Endpoint:
    """``url``: an OpenAI-compatible base URL; ``key`` "": none. ``project``: on whose behalf, of Iro's own server.

    ``quoted``: whether errors may quote what it answers. Not one that a caller chose: it may be anything. ``limits``:
    of this process's requests.
    """

    url: str
    key: str = ""
    project: str | None = None
    quoted: bool = False
    limits: EndpointLimits | None = None

    def headers(self) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return headers | ({} if self.project is None else {"OpenAI-Project": quote(self.project)})

    def charge(self, key_id: str | None) -> dict[str, str]:
        """The header that counts a request's tokens against a key, of Iro's own server; others learn of no key."""
        return {} if self.project is None or key_id is None else {CHARGED_KEY: key_id}


@dataclass(frozen=True)
class Reply:
    """The last answer to a request. ``response`` None: there was none, for the reason ``error``; ``timed_out``: not in
    time."""

    response: httpx.Response | None
    error: str = ""
    timed_out: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether the server may well answer otherwise later."""
        if self.response is None:
            return self.error != CLOSED
        if self.response.headers.get("x-should-retry") == "false":
            return False
        return self.response.status_code in (408, 409, 429) or self.response.status_code >= 500


CLOSED = "the grader is closed"


class Attempts(stop_base):
    """When one request is tried no further: after ``most`` attempts. One that is told how long to wait (429 with
    Retry-After) spends none where ``still_waits`` is given, and is tried as long as that is true."""

    def __init__(self, most: int, still_waits: Callable[[], bool] | None) -> None:
        self.most, self.still_waits, self.num_waits = most, still_waits, 0

    def __call__(self, retry_state: RetryCallState) -> bool:
        response = _last_reply(retry_state).response
        if self.still_waits is not None and response is not None and _is_told_to_wait(response):
            self.num_waits += 1
            return not self.still_waits()
        return retry_state.attempt_number - self.num_waits >= self.most


class Poster:
    """Posts to one endpoint, from any thread, until it is closed. Redirects are not followed: they could lead anywhere.

    ``timeout``: seconds of one attempt. ``retries_timeouts``: what took longer is tried again. ``retries_bounded``:
    all requests together are tried again FREE_RETRIES times and as often as RETRY_SHARE of the replies; a request
    that is told to wait (429) spends no retry.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        attempts: int | None = None,
        backoff: float = 0.5,
        timeout: float = TIMEOUT,
        retries_bounded: bool = False,
        retries_timeouts: bool = True,
    ) -> None:
        self._retries_timeouts = retries_timeouts
        self.endpoint, self._attempts, self._timeout = endpoint, attempts or ATTEMPTS, timeout
        self._window = window_of(endpoint.url, endpoint.limits) if endpoint.limits else None
        self._retries_bounded, self._replies, self._retries = retries_bounded, 0, 0
        self._exponential = wait_random_exponential(backoff, LONGEST_WAIT)
        self._still_waits: Callable[[], bool] | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._under_way = 0

    def post_all(self, route: str, bodies: Sequence[JsonObject]) -> list[Reply]:
        """One reply to each body, in order."""
        charge = self.endpoint.charge(charged_key())
        url = f"{self.endpoint.url}/{route}"
        with ThreadPoolExecutor(AT_ONCE, "poster") as threads:
            return list(threads.map(lambda body: self._post(url, body, charge), bodies))

    def wait_for_limits(self, still_waits: Callable[[], bool] = lambda: True) -> None:
        """Have requests that are told how long to wait (429 with Retry-After) wait while ``still_waits``, which any
        thread calls: they spend no attempt."""
        self._still_waits = still_waits

    def close(self) -> None:
        """Post nothing further, nor again. A request that waits for its answer ends with it, or with its timeout."""
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
            timeout=httpx.Timeout(self._timeout, connect=10.0),
            limits=httpx.Limits(max_connections=AT_ONCE),
            trust_env=self.endpoint.project is None,
        )

    def _post(self, url: str, body: JsonObject, headers: Mapping[str, str]) -> Reply:
        while_busy = Retrying(
            retry=retry_if_result(self._may_retry),
            stop=stop_when_event_set(self._closed) | Attempts(self._attempts, self._still_waits),
            wait=self._wait,
            sleep=sleep_until(self._closed),
            retry_error_callback=_last_reply,
        )
        reply: Reply = while_busy(self._try, url, body, headers)
        return Reply(None, CLOSED) if reply.is_busy and self._closed.is_set() else reply

    def _try(self, url: str, body: JsonObject, headers: Mapping[str, str]) -> Reply:
        with self._lock:
            if self._closed.is_set():
                return Reply(None, CLOSED)
            client = self._client
            self._under_way += 1
        try:
            return self._within_limits(client, url, body, headers)
        except httpx.LocalProtocolError:  # whose text may quote a header, and so the key
            return Reply(
                None, "the request cannot be sent: its key or its URL holds characters that HTTP does not take"
            )
        except httpx.RequestError as error:
            timed_out = isinstance(error, httpx.ReadTimeout)
            return Reply(None, f"no answer: {type(error).__name__} {error}".strip(), timed_out)
        finally:
            self._hang_up(1)

    def _within_limits(self, client: httpx.Client, url: str, body: JsonObject, headers: Mapping[str, str]) -> Reply:
        if self._window is None:
            return Reply(_posted(client, url, body, headers))
        entry = self._window.wait_turn(body, self._closed)
        if self._closed.is_set():
            return Reply(None, CLOSED)
        response = _posted(client, url, body, headers)
        if (used_tokens := _used_tokens(response)) is not None:
            self._window.correct(entry, used_tokens)
        return Reply(response)

    def _may_retry(self, reply: Reply) -> bool:
        """Whether the server is busy, and the retries are not spent."""
        with self._lock:
            self._replies += 1
            if not reply.is_busy or (reply.timed_out and not self._retries_timeouts):
                return False
            if not self._retries_bounded or (reply.response is not None and reply.response.status_code == 429):
                return True
            self._retries += 1
            return self._retries <= FREE_RETRIES + RETRY_SHARE * self._replies

    def _wait(self, state: RetryCallState) -> float:
        response = _last_reply(state).response
        retry_after = None if response is None else _retry_after(response)
        return self._exponential(state) if retry_after is None else min(retry_after, LONGEST_WAIT)


def _last_reply(state: RetryCallState) -> Reply:
    assert state.outcome is not None
    reply: Reply = state.outcome.result()
    return reply


def _posted(client: httpx.Client, url: str, body: JsonObject, headers: Mapping[str, str]) -> httpx.Response:
    return client.post(url, content=_encoded(body), headers={**headers, "Content-Type": "application/json"})


def _encoded(body: JsonObject) -> bytes:
    """As JSON in UTF-8, escaped where it holds half a surrogate pair, which UTF-8 has not."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()


def _is_told_to_wait(response: httpx.Response) -> bool:
    return response.status_code == 429 and _retry_after(response) is not None


def _used_tokens(response: httpx.Response) -> int | None:
    """As the answer says, None where it does not; 0 of a refusal."""
    try:
        return int(response.json()["usage"]["total_tokens"])
    except (ValueError, LookupError, TypeError):
        return None if response.status_code == 200 else 0


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:  # absent, or a date, which servers of this kind do not send
        return None
