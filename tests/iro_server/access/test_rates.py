"""Limits a minute: when a refused request is allowed, and when all of a limit is there again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits.storage import memory

from iro_server.access.rates import Allowance, RateLimitExceeded, Rates

LIMIT = 1000
KEY = Allowance("key", tokens_per_minute=LIMIT)
START = 60.0 * 30_000_000


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now


@contextmanager
def clock_at(second: float) -> Iterator[Clock]:
    clock = Clock(START + second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "time", SimpleNamespace(time=lambda: clock.now))
        yield clock


def refusal(rates: Rates, tokens: int) -> int | None:
    """``retry_after`` of the refusal, None where the request is allowed."""
    try:
        rates.spend(KEY, tokens, {})
    except RateLimitExceeded as error:
        return error.retry_after
    return None


@given(
    second=st.integers(0, 59),
    spent=st.lists(st.tuples(st.integers(0, 40), st.integers(1, LIMIT)), min_size=1, max_size=4),
    tokens=st.integers(1, LIMIT),
)
def test_a_refused_request_is_allowed_after_the_seconds_that_it_is_given_and_not_two_seconds_before(
    second: int, spent: list[tuple[int, int]], tokens: int
) -> None:
    rates = Rates()
    with clock_at(second + 0.5) as clock:
        for seconds, before in spent:
            clock.now += seconds
            refusal(rates, before)
        retry_after = refusal(rates, tokens)
        if retry_after is not None:
            asked = clock.now
            clock.now = asked + retry_after - 2
            assert clock.now < asked or refusal(rates, tokens) is not None
            clock.now = asked + retry_after
            assert refusal(rates, tokens) is None


def test_the_reset_is_when_the_whole_limit_is_there_again() -> None:
    rates, headers = Rates(), dict[str, str]()
    with clock_at(10) as clock:
        rates.spend(KEY, 400, headers)
        reset = float(headers["x-ratelimit-reset-tokens"].removesuffix("s"))
        assert 50 < reset < 110  # until the minute ends, and most of the next one
        clock.now += reset + 0.01
        rates.spend(KEY, LIMIT, headers)
