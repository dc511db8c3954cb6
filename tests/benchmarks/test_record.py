"""What an interrupted benchmark goes on with: parts that were computed with the same options, and no others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import alarms, closed_endpoints, estimates, probes, value_features
from benchmarks.record import computed_once
from benchmarks.tasks import TASKS

TASK: Any = TASKS["keywords"]
ESTIMATED = {name: 8 for name in estimates.SIZES} | {"seed": 0}
Measure = Callable[[Any], Any]  # of the command line's options
CASES: dict[str, tuple[Any, Measure, dict[str, Any], dict[str, Any]]] = {  # options, and those that another run has
    "alarms": (
        alarms,
        lambda args: alarms.measured_once(None, Path(), "keywords", args),
        {"prompts": 8, "rollouts": 2, "seed": 0, "validation_prompts": 2},
        {"validation_prompts": 6},
    ),
    "closed_endpoints": (
        closed_endpoints,
        lambda args: closed_endpoints.measured_once("", TASK, 0, args),
        {"prompts": 8},
        {"prompts": 64},
    ),
    "probes": (
        probes,
        lambda args: probes.measured_once(None, TASK, 0, args),
        {"prompts": 8, "samples": 2, "heldout_prompts": 4},
        {"heldout_prompts": 64},
    ),
    "value_features, prompts": (
        value_features,
        lambda args: value_features.measured_once(None, TASK, 0, args),
        {"prompts": 8, "samples": 2, "heldout_prompts": 4, "features": None},
        {"heldout_prompts": 12},
    ),
    "value_features, sets": (
        value_features,
        lambda args: value_features.measured_once(None, TASK, 0, args),
        {"prompts": 8, "samples": 2, "heldout_prompts": 4, "features": ["embeddings and counts"]},
        {"features": None},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_does_not_reuse_results_of_other_options(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, measure, options, changed = CASES[name]
    monkeypatch.setattr(module, "measured", lambda *_: {"gain": None})
    measured = measure(argparse.Namespace(out=tmp_path, **options))
    assert measure(argparse.Namespace(out=tmp_path, **options)) == measured
    with pytest.raises(SystemExit, match=r"was run with .* choose another --out"):
        measure(argparse.Namespace(out=tmp_path, **options | changed))


@pytest.mark.parametrize("changed", [*estimates.SIZES, "pieces"])
def test_an_estimate_is_not_compared_with_a_job_of_other_sizes(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "sized_case", lambda *_: None)
    monkeypatch.setattr(estimates, "estimated_once", lambda *_: {})
    monkeypatch.setattr(estimates, "predicted", lambda _: {})
    monkeypatch.setattr(estimates, "realised", lambda *_: {})
    args = argparse.Namespace(out=tmp_path, pieces=None, **ESTIMATED)
    assert estimates.row_of("keywords", None, args) == estimates.row_of("keywords", None, args)
    setattr(args, changed, tmp_path if changed == "pieces" else 16)
    with pytest.raises(SystemExit, match="was run with"):
        estimates.row_of("keywords", None, args)


def test_options_are_those_of_the_computation_that_began(tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    path = tmp_path / "seed-0" / "row.json"
    with pytest.raises(KeyboardInterrupt):
        computed_once(path, interrupted, {"prompts": 8})
    with pytest.raises(SystemExit, match=r'\{"prompts": 8\}, not \{"prompts": 16\}'):
        computed_once(path, list, {"prompts": 16})
    assert computed_once(path, lambda: [1], {"prompts": 8}) == [1]


def test_a_part_without_saved_options_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    path.write_text(json.dumps([1]))
    assert computed_once(path, list) == [1]
    with pytest.raises(SystemExit, match="unknown options"):
        computed_once(path, list, {"prompts": 8})
