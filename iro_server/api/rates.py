"""How much a key may ask for: requests and tokens a minute, requests at once. Each server counts for itself."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from iro_server.api.errors import APIError


@dataclass(frozen=True)
class Allowance:
    """What one key may do. None: as much as the server can."""

    key_id: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


class Rates:
    """Sliding windows of a minute. ``headers`` of a request grow with what is counted for it."""

    def __init__(self) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()

    def enter(self, allowance: Allowance, headers: dict[str, str]) -> None:
        """Count a request that begins; ``leave`` must follow. 429, with nothing to leave, where there are too many."""
        if allowance.concurrency is not None and self._running[allowance.key_id] >= allowance.concurrency:
            message = f"Too many requests at once for this key: it may have {allowance.concurrency}."
            raise _too_many(message, "concurrency", 1)
        self._count("requests", allowance.requests_per_minute, allowance.key_id, 1, headers)
        self._running[allowance.key_id] += 1

    def leave(self, allowance: Allowance) -> None:
        self._running[allowance.key_id] -= 1
        if not self._running[allowance.key_id]:
            del self._running[allowance.key_id]

    def spend(self, allowance: Allowance, tokens: int, headers: dict[str, str]) -> None:
        """Count tokens that a request may draw from the model. 429 where they are too many."""
        self._count("tokens", allowance.tokens_per_minute, allowance.key_id, tokens, headers)

    def _count(self, unit: str, limit: int | None, key_id: str, cost: int, headers: dict[str, str]) -> None:
        if limit is None:
            return
        if cost > limit:
            message = (
                f"Request too large: it takes {cost} {unit}, and this key may have {limit} a minute. Ask for fewer."
            )
            raise APIError(429, message, type=unit, code="rate_limit_exceeded", headers={"x-should-retry": "false"})
        item = RateLimitItemPerMinute(limit)
        allowed = self._limiter.hit(item, unit, key_id, cost=cost)
        window = self._limiter.get_window_stats(item, unit, key_id)
        reset = max(0.0, window.reset_time - time.time())
        headers[f"x-ratelimit-limit-{unit}"] = str(limit)
        headers[f"x-ratelimit-remaining-{unit}"] = str(window.remaining)
        headers[f"x-ratelimit-reset-{unit}"] = f"{reset:.3f}s"
        if not allowed:
            message = f"Rate limit reached: {limit} {unit} a minute for this key, and this request takes {cost}."
            raise _too_many(message, unit, math.ceil(reset))


def _too_many(message: str, type: str, seconds: int) -> APIError:
    headers = {"Retry-After": str(max(1, seconds))}
    return APIError(429, message, type=type, code="rate_limit_exceeded", headers=headers)
