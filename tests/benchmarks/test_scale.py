"""What a window of a measurement shows of requests that go on at its end."""

from __future__ import annotations

from benchmarks.scale import span_until
from benchmarks.scale_model import Outcome


def test_a_request_that_goes_on_counts_as_long_as_it_has_lasted() -> None:
    assert span_until(30.0, start=10.0, first_chunk=2.0, finish=25.0) == (15.0, 2.0, True)
    assert span_until(30.0, start=10.0, first_chunk=2.0, finish=45.0) == (20.0, 2.0, False)
    assert span_until(30.0, start=10.0, first_chunk=25.0, finish=45.0) == (20.0, 20.0, False)
    assert span_until(30.0, start=10.0, first_chunk=None, finish=45.0) == (20.0, 20.0, False)


def test_requests_a_second_are_those_that_ended() -> None:
    outcome = Outcome.of([1.0, 1.0, 9.0], [0.5, 0.5, 9.0], 10.0, busy=0.5, num_unfinished=1)
    assert outcome.requests_per_second == 0.2 and outcome.whole[1] > 1.0
