"""What the benchmark of neighbours counts as a call, as a latency and as a failure, and when it writes its file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import neighbours, tables
from benchmarks.neighbours import KINDS, Tenant, summarise
from iro_server import JsonObject


def answer(request: httpx.Request) -> httpx.Response:
    """Chats are refused; all else succeeds."""
    return httpx.Response(429 if request.url.path.endswith("completions") else 200, json={"id": "file-1"})


def round_of(names: list[str]) -> JsonObject:
    quick = {"p95": dict.fromkeys(KINDS, 0.1), "calls": dict.fromkeys(KINDS, 5), "failures": {}}
    return {name: quick for name in ("alone", *names, "afterwards")}


def test_a_refused_call_is_a_failure_and_no_latency() -> None:
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server/v1") as http:
        work = Tenant(http).work(0.1)
    assert work["failures"] == {429: work["calls"]["chat"]} and work["calls"]["chat"] >= 3
    assert set(work["p95"]) == {"files", "jobs", "grading"}


def test_a_kind_without_a_success_is_shown_as_such_and_misses_the_aim() -> None:
    measured = round_of(["flood"])
    refused = {"p95": dict.fromkeys(KINDS[1:], 0.15), "calls": dict.fromkeys(KINDS, 5), "failures": {429: 5}}
    numbers = summarise([measured | {"flood": refused}])
    assert numbers["rows"]["flood"] | {"p95": 0} == {
        "p95": 0,
        "ratio": pytest.approx(dict.fromkeys(KINDS[1:], 1.5)),
        "calls": dict.fromkeys(KINDS, 5),
        "failures": {429: 5},
        "holds": False,
    }
    head, _, *rows = tables.neighbours(numbers).splitlines()
    assert head.endswith("| other than 2xx |") and "| flood | no success | 150 (1.50)" in rows[1]
    assert numbers["rows"]["alone"]["holds"]


@pytest.mark.parametrize("names", [["a flood of chats"], list(neighbours.ATTACKS)])
def test_a_part_of_the_attacks_writes_no_results_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, names: list[str]
) -> None:
    monkeypatch.setattr(neighbours, "measure", lambda seconds, attacks: round_of(attacks))
    monkeypatch.setattr(neighbours, "terminated_is_exit", lambda: None)
    file = tmp_path / "default.json"
    monkeypatch.setattr(sys, "argv", ["neighbours", "--results", str(file), "--attacks", *names])
    neighbours.main()
    assert file.exists() == (len(names) > 1)
    assert ("No results file is written" in capsys.readouterr().out) == (len(names) == 1)
