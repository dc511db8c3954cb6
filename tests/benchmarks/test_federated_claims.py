"""The claims about federated rules, from results whose differences are known."""

from __future__ import annotations

from benchmarks.research.federated import accuracy, fadas, reviews
from training.federated.reviews import GRIDS
from training.intervals import band

OFFSETS = [0.0, 0.02, 0.05]  # of the seeds, the same for all methods
MEANS = {"FADAS": 0.7, "FADAS, delay-adaptive": 0.74, "FedBuff": 0.65, "FedAvg": 0.72, "FedAvg, all places": 0.7}


def test_differences_are_paired_by_seed() -> None:
    methods = {}
    for i, name in enumerate(GRIDS):
        per_seed = [MEANS[name] + offset + 0.001 * (i + 1) * j for j, offset in enumerate(OFFSETS)]
        methods[name] = {"step": 1.0, "per_seed": per_seed, "end": band(per_seed), "at_horizon": band(per_seed)}
    content = reviews({"results": {"heavy-tailed": {"methods": methods}}, "steps": {}})
    verdicts = {row["paper"].removeprefix("heavy-tailed delays"): row["verdict"] for row in content["claims"]}
    assert verdicts[": FADAS above FedBuff"] == verdicts[": FADAS, delay-adaptive above FADAS"] == "confirmed"
    assert verdicts[": FADAS above FedAvg"] == "contradicted"
    assert verdicts[": FADAS above FedAvg, all places"].startswith("not shown")
    assert verdicts[", in time: FADAS, delay-adaptive above FedAvg"].startswith("not shown")  # not paired
    assert "| FedAvg, all places | 1 | 0.7" in accuracy(content)


def test_claims_about_methods_that_did_not_run_are_left_out() -> None:
    cell = band([0.6, 0.7, 0.8])
    row = {"step": 1.0, "per_seed": [0.6, 0.7, 0.8], "end": cell, "at_horizon": cell}
    steps = {"mild": {"FADAS": {"tried": {"1": 0.7}, "at_edge": True}}}
    content = fadas({"results": {"mild": {"methods": {"FADAS": row, "FedBuff": row}}}, "steps": steps})
    assert [claim["paper"] for claim in content["claims"]] == ["mild delays: FADAS above FedBuff"]
    assert content["tuning"] == [{"delays": "mild", "method": "FADAS", "step": 1.0, "accuracy": 0.7}]
