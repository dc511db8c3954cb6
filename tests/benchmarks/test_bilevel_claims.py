"""The slopes of transient iterations, from their lengths."""

from __future__ import annotations

from typing import Any

from benchmarks.research.bilevel import slopes, transient

SHORT, LONG = [[2.0, 4.0, 6.0], [2.5, 4.5, 6.5]], [[9.0, 12.0, 15.0], [None, 12.5, 15.0]]


def result() -> dict[str, Any]:
    rows = {"ED": SHORT, "ATC-GT": SHORT, "ED/ATC-GT": SHORT, "D-SOBA": LONG}
    config = {"gaps": [0.25, 0.125, 0.0625], "sizes": [4, 8, 16]}
    levels = {"lower": rows, "upper": rows}
    return {"config": config, "gaps": {"every_agent": rows}, "sizes": rows, "levels": levels, "slopes": {}}


def test_the_table_says_in_how_many_problems_a_slope_is_missing() -> None:
    table = slopes(transient(result()))
    assert "| gap, every_agent, ED | at most 2 | 2 [2, 2] |" in table
    assert "| n from 4 to 16, ED | at most 3 | 2 [2, 2] |" in table
    assert "| n from 4 to 16, D-SOBA | at most 3 | none: fewer than three lengths in 1 of 2 problems |" in table


def test_a_results_file_keeps_enough_to_be_summarised_again() -> None:
    content = transient(result())
    assert transient(content["lengths"]) == content
