"""Judges: requests and tokens a minute, retries, and what their tokens cost."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from iro_server.graders.base import Sample
from iro_server.graders.endpoint_limits import EndpointLimits, MinuteWindow, TokenPrice, window_of
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import parse_grader
from iro_server.graders.posting import Endpoint, Poster, _used_tokens
from tests.iro_server.graders.test_model import PAIR, SCORE, endpoint

BODY = {"messages": [{"role": "user", "content": "x" * 60}], "max_tokens": 5}  # estimated: 28 tokens


def scored(prompt_tokens: int, completion_tokens: int):
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    usage["total_tokens"] = prompt_tokens + completion_tokens
    return 200, {"choices": [{"message": {"content": '{"result": 0.5}'}}], "usage": usage}, {}


class Clock:
    """Time that passes only where somebody waits; it stands for the event that would end the wait."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False


@pytest.mark.parametrize(
    ("limits", "used", "starts"),
    [
        ({"requests_per_minute": 2}, 0, [0, 0, 60, 60, 120]),
        ({"tokens_per_minute": 60}, 28, [0, 0, 60, 60, 120]),
        ({"tokens_per_minute": 60}, 50, [0, 60, 120, 180, 240]),  # the endpoint counted more than was estimated
        ({"tokens_per_minute": 60}, 5, [0, 0, 0, 0, 0]),  # and less
        ({"tokens_per_minute": 10}, 28, [0, 60, 120, 180, 240]),  # each is over it, and has a minute to itself
    ],
)
def test_no_minute_has_more_than_the_limits(limits, used, starts):
    clock = Clock()
    window = MinuteWindow(EndpointLimits(**limits), clock)
    entered = []
    for _ in starts:
        entry = window.wait_turn(BODY, clock)
        entered.append(clock.now)
        window.correct(entry, used)
    assert entered == pytest.approx(starts)


@pytest.mark.parametrize(
    ("status", "body", "used"),
    [
        (200, {"usage": {"total_tokens": 7}}, 7),
        (200, {"choices": []}, None),  # its estimate stands
        (200, {"usage": None}, None),
        (429, {}, 0),
    ],
)
def test_an_answer_without_usage_counts_as_estimated(status, body, used):
    assert _used_tokens(httpx.Response(status, json=body)) == used


def test_an_endpoint_that_reports_no_usage_is_held_to_its_tokens_per_minute():
    limits, closed = EndpointLimits(tokens_per_minute=30), threading.Event()
    closed.set()
    with endpoint((200, {"choices": [{"message": {"content": "0.5"}}]}, {})) as (url, _):
        poster = Poster(Endpoint(url, limits=limits))
        poster.post_all("chat/completions", [BODY])
        poster.close()
    entered_at, _ = window_of(url, limits).wait_turn(BODY, closed)
    assert entered_at == 0  # it waits, until it is closed


def test_a_grader_waits_for_its_endpoints_minute_and_stops_waiting_when_it_is_closed():
    with endpoint(scored(5, 5)) as (url, asked):
        environment = GraderEnvironment(any_endpoint=True, limits={url: EndpointLimits(requests_per_minute=3)})
        grader = parse_grader({**SCORE, "base_url": url}, environment)
        grades = []
        grading = threading.Thread(target=lambda: grades.extend(grader.grade_many([PAIR] * 5)))
        grading.start()
        deadline = time.monotonic() + 60
        while len(asked) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        grader.close()
        grading.join(60)
    assert len(asked) == 3 and sorted(grade.error is None for grade in grades) == [False, False, True, True, True]


def test_retries_of_an_endpoint_that_fails_are_spent_once_for_all(monkeypatch):
    monkeypatch.setattr("iro_server.graders.posting.FREE_RETRIES", 4)
    monkeypatch.setattr("iro_server.graders.posting.RETRY_SHARE", 0.0)
    with endpoint((500, {}, {"Retry-After": "0"})) as (url, asked):
        grader = parse_grader({**SCORE, "base_url": url}, GraderEnvironment(any_endpoint=True))
        grades = grader.grade_many([PAIR] * 20)
        grader.close()
    assert len(asked) == 24 and all("answered 500" in grade.error for grade in grades)


def test_being_told_to_wait_spends_no_retries(monkeypatch):
    monkeypatch.setattr("iro_server.graders.posting.FREE_RETRIES", 0)
    monkeypatch.setattr("iro_server.graders.posting.RETRY_SHARE", 0.0)
    with endpoint(*[(429, {}, {"Retry-After": "0"})] * 3, scored(1, 1)) as (url, _):
        grader = parse_grader({**SCORE, "base_url": url}, GraderEnvironment(any_endpoint=True))
        assert grader.grade(*PAIR).reward == 0.5
        grader.close()


def test_tokens_cost_their_price_also_within_a_multi_grader():
    prices = {"bytes": TokenPrice(input=2.0, output=10.0)}
    with endpoint(scored(1000, 100)) as (url, _):
        judge = {**SCORE, "base_url": url}
        multi = {"type": "multi", "name": "m", "graders": {"a": judge, "b": judge}, "calculate_output": "a + b"}
        for spec, calls in ((judge, 1), (multi, 2)):
            with parse_grader(spec, GraderEnvironment(any_endpoint=True, prices=prices)) as grader:
                grade = grader.grade(Sample("it"), {"q": "x"})
            assert grade.costs == {"bytes": pytest.approx(calls * (1000 * 2 + 100 * 10) / 1e6)}
            assert grade.tokens == {"bytes": calls * 1100}
        with parse_grader(judge, GraderEnvironment(any_endpoint=True)) as grader:
            assert grader.grade(Sample("it"), {"q": "x"}).costs == {}
