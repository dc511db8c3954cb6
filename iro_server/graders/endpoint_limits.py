"""What the operator says of endpoints that graders ask: requests and tokens a minute, and prices of tokens."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field

from iro_server import JsonObject

MINUTE = 60.0
BYTES_PER_TOKEN = 4  # of a request, before its endpoint says how many tokens it had


class EndpointLimits(BaseModel):
    """None: as much as the endpoint answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)


class TokenPrice(BaseModel):
    """Of a million tokens, in the operator's currency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


class MinuteWindow:
    """The requests of the last minute. ``wait_turn`` and ``correct`` may be called from any thread."""

    def __init__(self, limits: EndpointLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._entries: deque[list[float]] = deque()  # when, and tokens
        self._lock = threading.Lock()

    def wait_turn(self, body: JsonObject, closed: threading.Event) -> list[float]:
        """Wait until the request is within the limits, or ``closed`` is set. Returns its entry in the window.

        A request that is over the tokens of a minute by itself waits for an empty window.
        """
        tokens = estimated_tokens(body)
        while (seconds := self._try_enter(entry := [0.0, tokens])) > 0:
            if closed.wait(seconds):
                break
        return entry

    def correct(self, entry: list[float], tokens: int) -> None:
        """Count what the endpoint says that the request took."""
        with self._lock:
            entry[1] = tokens

    def _try_enter(self, entry: list[float]) -> float:
        """0 once ``entry`` is in the window, else the seconds until its oldest request leaves it."""
        with self._lock:
            now = self._clock()
            while self._entries and self._entries[0][0] <= now - MINUTE:
                self._entries.popleft()
            requests, tokens = self._limits.requests_per_minute, self._limits.tokens_per_minute
            is_full = requests is not None and len(self._entries) >= requests
            if tokens is not None and self._entries:
                is_full = is_full or sum(used for _, used in self._entries) + entry[1] > tokens
            if is_full:
                return max(0.01, self._entries[0][0] + MINUTE - now)
            entry[0] = now
            self._entries.append(entry)
            return 0.0


def estimated_tokens(body: JsonObject) -> int:
    """What a chat request may take: its text, and the most that it asks for."""
    most = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    return len(json.dumps(body.get("messages"))) // BYTES_PER_TOKEN + int(most)


@lru_cache(maxsize=256)
def window_of(url: str, limits: EndpointLimits) -> MinuteWindow:
    """The window that all graders of this process share for an endpoint."""
    return MinuteWindow(limits)
