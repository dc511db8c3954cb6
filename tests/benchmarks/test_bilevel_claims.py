"""The slopes of transient iterations, from their lengths."""

from __future__ import annotations

import re
from typing import Any

from scipy import stats

from benchmarks.record import read
from benchmarks.redraw import ROOT
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


def test_the_error_that_the_speed_up_does_not_exclude_is_that_of_the_results_file() -> None:
    """n times the error at the largest n over that at the smallest: the upper end of the 95 % interval."""
    ends = []
    for row in read(ROOT / "results/bilevel.quadratic/paper.json")["claims"]:
        if row["paper"].startswith("linear speed-up"):
            (first, last), test = (row["ours"][i]["mean"] for i in (0, -1)), row["test"]
            error = (last - first) / test["t"]
            ends.append((last + stats.t.ppf(0.975, test["df"]) * error) / first)
    text = " ".join((ROOT / "training/bilevel/README.md").read_text().split())
    sentence = re.search(r"up to (\d+) % above a linear speed-up is not excluded", text)
    assert sentence is not None and int(sentence[1]) == round(100 * (max(ends) - 1))
