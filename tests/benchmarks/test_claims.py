"""Verdicts on a paper's claims: against scipy's own tests, and on samples whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.research import theory
from benchmarks.research.claims import (
    Claim,
    against,
    at,
    cell_text,
    claims,
    detectable_effect,
    estimate,
    exact,
    negative,
    number,
    paired,
    positive,
    welch,
    zero,
)
from iro_server import JsonObject
from theory.lab import band, required_fit

RNG = np.random.default_rng(0)
SMALL, LARGE = RNG.normal(0, 1, 8), RNG.normal(3, 2, 12)


def test_the_statistics_are_scipys() -> None:
    one = stats.ttest_1samp(LARGE, 1.5)
    assert against(estimate(LARGE), 1.5) == pytest.approx({"t": one.statistic, "df": 11})
    two = stats.ttest_ind(LARGE, SMALL, equal_var=False)
    assert welch(estimate(LARGE), estimate(SMALL)) == pytest.approx({"t": two.statistic, "df": two.df})


def test_two_measures_of_the_same_models_are_compared_by_pairs() -> None:
    """Errors of five models of three layers at the smallest and the largest S_1."""
    small, large = [0.206, 0.3585, 0.0705, 0.059, 0.334], [0.0145, 0.2135, 0.002, 0.0065, 0.005]
    related = stats.ttest_rel(small, large)
    assert paired(band(small), band(large)) == pytest.approx({"t": related.statistic, "df": 4})
    by_length = band(np.stack([small, large], axis=1))
    assert paired(at(by_length, 0), at(by_length, 1)) == pytest.approx({"t": related.statistic, "df": 4})
    rows = theory._domains(icl_studies(band(small), band(large)))
    deep = next(row for row in rows if row["paper"].startswith("three layers"))
    assert deep["verdict"] == "confirmed" and deep["test"]["df"] == 4
    by_kind = {row["paper"][-30:]: row["verdict"][:9] for row in rows if row["paper"].startswith("out-of-domain")}
    assert list(by_kind.values()) == ["confirmed", "not shown"]  # mean patterns, orthonormal ones


def test_a_slope_counts_the_values_beyond_what_was_tried_and_none_is_no_verdict() -> None:
    needed = np.array([[40.0, 20, 10, np.nan], [41.0, 20, 10, np.nan], [np.nan, 20, 10, np.nan]])
    fit = required_fit([0.1, 0.2, 0.4, 0.8], needed, -1, "context")
    row = theory._exponent("context", fit, positive)
    assert row["paper"] == "context (4 of 12 values beyond what was tried, left out)" and row["test"]["df"] == 1
    nothing = required_fit([0.1, 0.2, 0.4, 0.8], needed[2:], -1, "context")
    row = theory._exponent("context", nothing, positive)
    assert row["verdict"].startswith("not shown at this scale") and row["ours"] == []
    assert "not shown" in claims({"claims": [row]})


def icl_studies(small: JsonObject, large: JsonObject) -> JsonObject:
    """Those that claims on domains read; the errors of three layers are given."""
    curve = band(np.random.default_rng(0).uniform(0, 0.1, (5, 2)))
    high = band(np.random.default_rng(1).uniform(0.5, 0.6, (5, 2)))
    return {
        "unseen": {"places": {"unseen": {"error": curve}}, "lengths": [20]},
        "tasks": {"rows": [curve], "lengths": [15], "counts": [6]},
        "layers": {"places": {"unseen": {"error": large}, "s1_0.5": {"error": small}, "s1_1.3": {"error": large}}},
        "s1": {
            "kinds": {kind: [at_two, *[curve] * 4] for kind, at_two in (("mean", high), ("orthonormal", curve))},
            "lengths": [10, 20],
        },
        "alpha": {"places": dict.fromkeys(("in_domain", "out_of_domain"), [curve] * 6), "lengths": [10]},
    }


@pytest.mark.parametrize(("value", "verdict"), [(2.0, "not shown"), (1.0, "confirmed"), (3.0, "contradicted")])
def test_samples_without_variation_are_compared_exactly(value: float, verdict: str) -> None:
    cell = estimate([2.0] * 5)
    assert positive("above", [cell], against(cell, value))["verdict"].startswith(verdict)


@pytest.mark.parametrize(
    ("t", "verdicts"),
    [
        (3.0, ("confirmed", "contradicted", "contradicted")),
        (-3.0, ("contradicted", "confirmed", "contradicted")),
        (1.0, ("not shown at this scale, because of noise",) * 2 + ("confirmed",)),
    ],
)
def test_a_verdict_follows_the_statistic(t: float, verdicts: tuple[str, str, str]) -> None:
    test = {"t": t, "df": 9.0}
    because = "of noise"
    rows = [positive("", [], test, because), negative("", [], test, because), zero("", [], test)]
    assert tuple(row["verdict"] for row in rows) == verdicts
    assert all(row["test"] == test for row in rows)


def test_a_check_without_seeds_is_shown_without_a_statistic() -> None:
    check = {"name": "points", "expected": [0, 0.25], "got": {"index": 0, "loss": [0.25, None, 3.2e-12]}, "holds": True}
    table = claims({"claims": [exact(check)]})
    assert table.splitlines()[-1] == "| points: 0, 0.25 | 0; 0.25; 3.2e⁻¹² |  | confirmed |  |"
    assert cell_text({"mean": -2, "low": -2.5, "high": -1.5}) == "-2 [-2.5, -1.5]"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12, "12"), (0.12345, "0.123"), (1672.4, "1672"), (-2e-7, "-2.0e⁻⁷"), (3e8, "3.0e⁸")]
)
def test_numbers_have_three_digits_and_powers_of_ten_as_superscripts(value: float, text: str) -> None:
    assert number(value) == text


def test_the_detectable_effect_is_shown_in_four_samples_of_five() -> None:
    """Samples of twelve, of a known scale, at the effect that one of them gives on average."""
    samples = np.random.default_rng(1).normal(0, 1, (4000, 12))
    effect = np.mean([detectable_effect(estimate(sample), 11) for sample in samples[:500]])
    shown = [against(estimate(sample + effect), 0)["t"] > stats.t.ppf(0.975, 11) for sample in samples[500:]]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.04)


def test_a_claim_that_is_not_shown_says_which_effect_would_have_been() -> None:
    cell = estimate(SMALL)
    row = positive("above", [cell], against(cell, 0))
    effect = number(detectable_effect(cell, 7))
    assert claims({"claims": [row]}).splitlines()[-1].endswith(f"includes zero | {effect} |")


def claim_of(p_value: float) -> Claim:
    """A claim whose test has this two-sided p value."""
    return positive(f"p = {p_value}", [], {"t": float(stats.t.isf(p_value / 2, 9)), "df": 9.0})


@pytest.mark.parametrize(
    ("p_values", "marked"),
    [
        ([0.04, 1e-4, *[0.5] * 8], {0.04}),
        ([0.04], set()),
        ([0.012, 0.024, 0.04], set()),  # step down: .05/3, .05/2, .05
        ([0.03, 0.04, 0.045], {0.03, 0.04, 0.045}),  # the first fails, and with it all
    ],
)
def test_a_verdict_that_holms_correction_does_not_keep_is_marked(p_values: list[float], marked: set[float]) -> None:
    lines = claims({"claims": [claim_of(p_value) for p_value in p_values]}).splitlines()[2:]
    assert [line.endswith("| confirmed † |  |") for line in lines] == [p_value in marked for p_value in p_values]


def test_holms_correction_is_for_the_tests_of_a_table_and_marks_no_claim_without_a_verdict() -> None:
    check = exact({"name": "exact", "expected": 1, "got": 1, "holds": True})
    undecided = claim_of(0.03) | {"verdict": "undecided, because of the limit"}
    assert "†" not in claims({"claims": [claim_of(0.04), *[check] * 9]})
    assert "†" not in claims({"claims": [undecided, claim_of(0.5)]})
