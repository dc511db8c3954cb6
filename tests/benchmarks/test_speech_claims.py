"""The claims of BL-JUST are of differences of test CER, paired by seed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.research.speech import bl_just, errors


def trainings(*cers: float) -> list[dict[str, Any]]:
    return [{part: {"cer": cer, "wer": 1.0} for part in ("dev", "test")} for cer in cers]


def content() -> dict[str, Any]:
    results = {"supervised": trainings(0.7, 0.6, 0.8), "bl_just": trainings(0.61, 0.5, 0.69)}
    tried = {"tried": {"0.1": 0.6, "0.3": 0.5}, "at_edge": True}
    chosen = {"supervised": {"lr": 3e-3}, "bl_just": {"lr": 3e-3, "gamma": 0.3}}
    return bl_just({"results": results, "chosen": chosen, "tuning": {"bl_just": {"gamma": tried}}})


def test_a_lower_error_rate_in_each_seed_confirms_the_claim() -> None:
    (claim,) = content()["claims"]
    assert claim["paper"].startswith("test CER: BL-JUST (") and claim["paper"].endswith("below texts alone")
    assert claim["ours"][0]["mean"] == pytest.approx(-0.1) and claim["verdict"] == "confirmed"


def test_the_table_marks_a_rate_at_the_edge_of_what_was_tried() -> None:
    lines = errors(content()).splitlines()
    assert "| lr 0.003 | 0.7 [" in lines[2] and "| lr 0.003, gamma 0.3 (edge) | 0.6 [" in lines[3]
