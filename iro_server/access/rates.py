"""How much a key may ask for: requests and tokens a minute, requests at once. Each server counts for itself."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter


class RateLimitExceeded(Exception):
    """A key asks for too much. ``unit``: "requests", "tokens" or "concurrency". ``retry_after``: seconds, None where no
    retry succeeds."""

    def __init__(self, message: str, unit: str, retry_after: int | None) -> None:
        super().__init__(message)
        self.unit, self.retry_after = unit, retry_after


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
        self._storage = MemoryStorage()
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._running: Counter[str] = Counter()

    def enter(self, allowance: Allowance, headers: dict[str, str]) -> None:
        """Count a request that begins; ``leave`` must follow. RateLimitExceeded, with nothing to leave, where there are
        too many."""
        if allowance.concurrency is not None and self._running[allowance.key_id] >= allowance.concurrency:
            message = f"Too many requests at once for this key: it may have {allowance.concurrency}."
            raise RateLimitExceeded(message, "concurrency", 1)
        self._count("requests", allowance.requests_per_minute, allowance.key_id, 1, headers)
        self._running[allowance.key_id] += 1

    def leave(self, allowance: Allowance) -> None:
        self._running[allowance.key_id] -= 1
        if not self._running[allowance.key_id]:
            del self._running[allowance.key_id]

    def spend(self, allowance: Allowance, tokens: int, headers: dict[str, str]) -> None:
        """Count tokens that a request may draw from the model. RateLimitExceeded where they are too many."""
        self._count("tokens", allowance.tokens_per_minute, allowance.key_id, tokens, headers)

    def _count(self, unit: str, limit: int | None, key_id: str, cost: int, headers: dict[str, str]) -> None:
        if limit is None:
            return
        if cost > limit:
            message = (
                f"Request too large: it takes {cost} {unit}, and this key may have {limit} a minute. Ask for fewer."
            )
            raise RateLimitExceeded(message, unit, None)
        item = RateLimitItemPerMinute(limit)
        allowed = self._limiter.hit(item, unit, key_id, cost=cost)
        headers[f"x-ratelimit-limit-{unit}"] = str(limit)
        headers[f"x-ratelimit-remaining-{unit}"] = str(self._limiter.get_window_stats(item, unit, key_id).remaining)
        headers[f"x-ratelimit-reset-{unit}"] = f"{self._seconds_until(item, unit, key_id, limit):.3f}s"
        if not allowed:
            message = f"Rate limit reached: {limit} {unit} a minute for this key, and this request takes {cost}."
            raise RateLimitExceeded(message, unit, math.floor(self._seconds_until(item, unit, key_id, cost)) + 1)

    def _seconds_until(self, item: RateLimitItemPerMinute, unit: str, key_id: str, cost: int) -> float:
        """From now, until just before ``cost`` is allowed, if nothing else is counted until then.

        The limiter allows it while the floor of previous · (what is left of this minute / 60) + current, and the cost,
        are within the limit. At the minute's end, current becomes previous.
        """
        minute = item.get_expiry()
        previous, _, current, expires_in = self._storage.get_sliding_window(item.key_for(unit, key_id), minute)
        rest, room = expires_in - minute, item.amount - cost + 1
        if rest * previous / minute + current < room:
            return 0.0
        if current < room:
            return rest - (room - current) * minute / previous
        return rest + max(0.0, minute - room * minute / current)
