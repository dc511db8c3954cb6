"""Posting JSON: what a body may hold, and how long a request waits for a limit."""

from __future__ import annotations

from iro_server.graders.posting import Endpoint, Poster
from tests.iro_server.graders.test_model import endpoint, said

LIMITED = (429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"})


def posted(url: str, body: dict[str, object], attempts: int = 1, **limits: object) -> int:
    """The status of the answer; ``limits``: as of ``wait_for_limits``."""
    poster = Poster(Endpoint(url), attempts)
    if limits:
        poster.wait_for_limits(**limits)
    (reply,) = poster.post_all("chat/completions", [body])
    poster.close()
    assert reply.response is not None
    return reply.response.status_code


def test_half_a_surrogate_pair_is_sent_as_its_escape_and_other_text_as_it_is() -> None:
    with endpoint(said("1")) as (url, asked):
        assert posted(url, {"text": "cut \ud83d"}) == 200
        assert posted(url, {"text": "héllo 😀"}) == 200
    (_, escaped_headers, escaped), (_, headers, plain) = asked
    assert (escaped["text"], plain["text"]) == ("cut \ud83d", "héllo 😀")
    assert escaped_headers["content-type"] == headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len('{"text":"héllo 😀"}'.encode())


def test_a_request_that_waits_for_a_limit_spends_no_attempt() -> None:
    broken = (500, {}, {"Retry-After": "0"})
    with endpoint(LIMITED, LIMITED, broken, LIMITED, said("1")) as (url, asked):
        assert posted(url, {}, attempts=2, still_waits=lambda: True) == 200
        assert len(asked) == 5
    with endpoint(LIMITED, broken) as (url, asked):
        assert posted(url, {}, attempts=2, still_waits=lambda: True) == 500
        assert len(asked) == 3
    with endpoint(LIMITED) as (url, asked):
        assert posted(url, {}, attempts=2) == 429
        assert len(asked) == 2


def test_a_request_waits_for_a_limit_only_while_it_should() -> None:
    answers = iter([True, True, False])
    with endpoint(LIMITED) as (url, asked):
        assert posted(url, {}, still_waits=lambda: next(answers)) == 429
    assert len(asked) == 3
