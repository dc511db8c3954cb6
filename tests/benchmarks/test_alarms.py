"""When the benchmark of alarms writes its results file."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.alarms import cases, count_warnings, finish_all
from iro_server import JsonObject


def row(name: str, kind: str) -> JsonObject:
    return {
        "grader": name,
        "kind": kind,
        "gain": 0.5,
        "gain_error": 0.1,
        "served": 1.0,
        "model": [],
        "distance": None,
        "refused": None,
        "passed_over": [],
    }


@pytest.mark.parametrize("count", [3, len(cases())])
def test_a_part_of_the_graders_writes_no_results_file(tmp_path: Path, capsys: Any, count: int) -> None:
    names = list(cases())[:count]
    file = tmp_path / "default.json"
    args = Namespace(benchmark="alarms", results=file, json=False, graders=names, seed=0)
    finish_all(args, [row(name, cases()[name].kind) for name in names])
    assert file.exists() == (count == len(cases()))
    assert ("no results file is written" in capsys.readouterr().out) == (count < len(cases()))


def test_a_job_with_several_warnings_is_one_job_that_warned() -> None:
    far_and_refused = row("length", "planted") | {"distance": 2.5, "refused": {"reward": 3.0}}
    refused = row("commas", "planted") | {"refused": {"reward": 3.0}}
    planted, clean = count_warnings([far_and_refused, refused, row("digits", "planted"), row("brevity", "clean")])
    assert [planted[name] for name in ("jobs", "model", "distance", "refused", "any")] == [3, 0, 1, 2, 2]
    assert clean["jobs"] == 1 and clean["any"] == 0
