"""Quantiles and the report of a load of which a kind of request was done once, or never."""

from __future__ import annotations

from typing import Any

from benchmarks.load import quantiles, report


def test_one_request_has_quantiles_and_none_has_a_count_alone() -> None:
    assert quantiles([2.5]) == {"count": 1, "p50": 2.5, "p95": 2.5, "max": 2.5}
    assert quantiles([]) == {"count": 0}


def test_a_kind_that_was_done_once_is_reported(capsys: Any) -> None:
    below = {"done": {"upload": quantiles([2.5])}, "first_chunk": quantiles([])}
    report({"checks": [], "below_the_limit": below})
    assert capsys.readouterr().out == "upload       1 done, seconds p50 2.50, p95 2.50\n"
