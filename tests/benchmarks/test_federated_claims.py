"""The claims about federated rules, from results whose differences are known."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.research.federated import accuracy, claims, fadas, participation, reviews
from iro_server import JsonObject
from training.federated.comparison_summary import end
from training.federated.reviews import GRIDS
from training.intervals import band

OFFSETS = [0.0, 0.02, 0.05]  # of the seeds, the same for all methods
MEANS = {"FADAS": 0.7, "FADAS, delay-adaptive": 0.74, "FedBuff": 0.65, "FedAvg": 0.72, "FedAvg, all places": 0.7}


PARTICIPATION = {"runs": {"method": "FADAS", "ends": [9.5, 12.25], "answered": {"fast": [3, 4]}, "oldest": 120}}


def reviews_result() -> JsonObject:
    """Of three seeds under one delay model."""
    methods = {}
    for i, name in enumerate(GRIDS):
        per_seed = [MEANS[name] + offset + 0.001 * (i + 1) * j for j, offset in enumerate(OFFSETS)]
        cell = band(per_seed)
        methods[name] = {"step": 1.0, "per_seed": per_seed, "end": cell, "at_horizon": cell}
        methods[name]["rounds_at_horizon"] = [2, 3, 4]
    return {"results": {"heavy-tailed": {"methods": methods, "participation": PARTICIPATION}}, "steps": {}}


def test_differences_are_paired_by_seed() -> None:
    content = reviews(reviews_result())
    verdicts = {row["paper"].removeprefix("heavy-tailed delays"): row["verdict"] for row in content["claims"]}
    assert verdicts[": FADAS above FedBuff"] == verdicts[": FADAS, delay-adaptive above FADAS"] == "confirmed"
    assert verdicts[": FADAS above FedAvg"] == "contradicted"
    assert verdicts[": FADAS above FedAvg, all places"].startswith("not shown")
    in_time = verdicts[", in time: FADAS, delay-adaptive above FedAvg, which has 2 to 4 rounds"]
    assert in_time == "not shown at this scale, because the interval of the difference includes zero"  # not paired
    assert "above FedAvg, which has 2 to 4 rounds (Welch's t)" in claims(content)
    assert "| FedAvg, all places | 1 | 0.7" in accuracy(content) and "after 2 to 4 rounds |" in accuracy(content)


def test_accuracies_in_time_are_paired_where_a_result_has_them_by_seed() -> None:
    """Differences of .016 to .02, over seeds that differ by .05."""
    result = reviews_result()
    for row in result["results"]["heavy-tailed"]["methods"].values():
        row["at_horizon_per_seed"] = row["per_seed"]
    content = reviews(result)
    claim = next(
        row for row in content["claims"] if "in time" in row["paper"] and "above FedAvg, which" in row["paper"]
    )
    assert claim["verdict"] == "confirmed" and claim["test"]["df"] == 2
    assert [cell["mean"] for cell in claim["ours"]] == [pytest.approx(0.018)]
    assert "Welch" not in claims(content)


def test_a_rule_without_a_finished_round_is_not_compared_in_time() -> None:
    result = reviews_result()
    result["results"]["heavy-tailed"]["methods"]["FedAvg"]["rounds_at_horizon"] = [0, 2, 0]
    claim = next(row for row in reviews(result)["claims"] if "above FedAvg, which" in row["paper"])
    assert claim["paper"].endswith("above FedAvg, which has 0 to 2 rounds") and "test" not in claim
    assert claim["verdict"] == "not shown at this scale, because FedAvg has no round in 2 of 3 seeds"


def test_a_file_without_finished_rounds_shows_no_synchronous_rule_in_time() -> None:
    content = reviews(reviews_result())
    assert "in time" in claims(content)
    for cell in content["accuracy"]["heavy-tailed"].values():
        del cell["rounds_at_horizon"]
    assert "in time" not in claims(content) and "FADAS above FedBuff" in claims(content)
    lines = accuracy(content).splitlines()
    assert [line.startswith("| FedAvg") for line in lines] == [line.endswith("| not evaluated |") for line in lines]


def test_the_clients_that_answered_are_shown_by_speed() -> None:
    lines = participation(reviews(reviews_result())).splitlines()
    assert lines[0] == "|  | virtual time at the end | fast clients that answered | oldest update |"
    assert lines[2:] == ["| heavy-tailed delays, runs | 9.5 to 12.2 | 3 of 4 | 120 |"]


def test_claims_about_methods_that_did_not_run_are_left_out() -> None:
    cell = band([0.6, 0.7, 0.8])
    row = {"step": 1.0, "per_seed": [0.6, 0.7, 0.8], "end": cell, "at_horizon": cell, "rounds_at_horizon": [1, 1, 1]}
    steps = {"mild": {"FADAS": {"tried": {"1": 0.7}, "at_edge": True}}}
    methods = {"FADAS": row, "FedBuff": row}
    content = fadas({"results": {"mild": {"methods": methods, "participation": PARTICIPATION}}, "steps": steps})
    assert [claim["paper"] for claim in content["claims"]] == ["mild delays: FADAS above FedBuff"]
    assert content["tuning"] == [{"delays": "mild", "method": "FADAS", "step": 1.0, "accuracy": 0.7}]


def test_the_heading_says_that_accuracy_is_a_mean_of_the_last_evaluations() -> None:
    head = accuracy(reviews(reviews_result())).splitlines()[0]
    assert "heavy-tailed delays, last 3 evaluations" in head and "at the end" not in head
    accuracies = [0.1, 0.5, 0.6, 0.7]
    curve: Any = {"accuracy": accuracies, "regular": range(4)}
    assert end(curve) == pytest.approx(0.6)
