"""A paper's claim beside our estimates, with a t statistic and a verdict; and the table of a job's claims.

Estimates are ``training.intervals.band``s over seeds: {"mean", "low", "high", "seeds"}, 95 % Student intervals; those
of the theory papers have each seed's value too, under "samples". A verdict is "confirmed" or "contradicted" where the
statistic is beyond the 2.5 % quantile of its distribution, and "not shown at this scale, because …" between. Each is
of its test alone; the table marks those that Holm's correction for all tests of the table does not keep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from benchmarks.tables import table
from iro_server import JsonObject
from training.intervals import band

Estimate = Mapping[str, float]
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NOISE = "the interval of the difference includes zero"
NOT_KEPT = " †"
LEVEL = 0.05  # of Holm's correction


class Statistic(TypedDict):
    """``t`` with ``df`` degrees of freedom."""

    t: float
    df: float


class Claim(TypedDict):
    """``paper``: the claim and the paper's numbers; ``ours``: estimates in the order of the claim."""

    paper: str
    ours: list[JsonObject]
    test: NotRequired[Statistic]
    verdict: str


def estimate(samples: ArrayLike) -> JsonObject:
    """Of samples [seeds]."""
    return band(samples) | {"seeds": len(np.asarray(samples))}


def at(bands: Mapping[str, Any], index: int) -> JsonObject:
    """One point of a curve of bands, with the samples of its seeds where the bands have them."""
    point = {name: bands[name][index] for name in ("mean", "low", "high")} | {"seeds": bands["seeds"]}
    return point | ({"samples": [curve[index] for curve in bands["samples"]]} if "samples" in bands else {})


def standard_error(cell: Estimate) -> float:
    return float((cell["high"] - cell["low"]) / 2 / stats.t.ppf(0.975, cell["seeds"] - 1))


def against(cell: Estimate, value: float) -> Statistic:
    """One sample against a number. Without variation t is 0, or infinite where the sample is not the number."""
    difference, error = cell["mean"] - value, standard_error(cell)
    t = difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
    return {"t": t, "df": cell["seeds"] - 1}


def welch(a: Estimate, b: Estimate) -> Statistic:
    """Of a less b, independent samples of unequal variance."""
    variances = [standard_error(cell) ** 2 for cell in (a, b)]
    degrees = [variance**2 / (cell["seeds"] - 1) for variance, cell in zip(variances, (a, b), strict=True)]
    return {"t": (a["mean"] - b["mean"]) / sum(variances) ** 0.5, "df": sum(variances) ** 2 / sum(degrees)}


def paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> Statistic:
    """Of a less b, two measures of the same models: their differences against 0."""
    return against(estimate(np.subtract(a["samples"], b["samples"])), 0)


def positive(paper: str, ours: Sequence[JsonObject], test: Statistic, because: str = NOISE) -> Claim:
    """The claim that what ``test`` measures is above 0."""
    bound = stats.t.ppf(0.975, test["df"])
    verdict = f"not shown at this scale, because {because}"
    if abs(test["t"]) > bound:
        verdict = "confirmed" if test["t"] > 0 else "contradicted"
    return {"paper": paper, "ours": list(ours), "test": test, "verdict": verdict}


def negative(paper: str, ours: Sequence[JsonObject], test: Statistic, because: str = NOISE) -> Claim:
    claim = positive(paper, ours, {"t": -test["t"], "df": test["df"]}, because)
    return claim | {"test": test}  # type: ignore[return-value]


def zero(paper: str, ours: Sequence[JsonObject], test: Statistic) -> Claim:
    """The claim that what ``test`` measures is 0: "confirmed" where the data do not refute it."""
    refuted = abs(test["t"]) > stats.t.ppf(0.975, test["df"])
    return {"paper": paper, "ours": list(ours), "test": test, "verdict": "contradicted" if refuted else "confirmed"}


def exact(check: JsonObject) -> Claim:
    """A check of a run (``Run.check``), of numbers that have no seeds."""
    expected, got = check["expected"], check["got"]
    aim = expected if isinstance(expected, str) else ", ".join(number(value) for value in flat(expected))
    ours = [{"mean": float(value)} for value in flat(got)]
    verdict = "confirmed" if check["holds"] else "contradicted"
    return {"paper": f"{check['name']}: {aim}", "ours": ours, "verdict": verdict}


def flat(value: object) -> Iterable[float]:
    """The numbers in a check's value; what is None or text has none."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in flat(item)]
    return [float(value)] if isinstance(value, int | float) else []


def number(value: float) -> str:
    """Three digits; the power of ten of small and large ones as superscript."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        whole = abs(value) >= 1000 or (abs(value) >= 1 and value == round(value))
        return f"{value:.0f}" if whole else f"{value:.3g}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa}e{str(int(power)).translate(SUPERSCRIPTS)}"


def cell_text(cell: Estimate) -> str:
    if "low" not in cell:
        return number(cell["mean"])
    return f"{number(cell['mean'])} [{number(cell['low'])}, {number(cell['high'])}]"


def claims(content: JsonObject) -> str:
    """The table of a results file's claims. NOT_KEPT marks verdicts that Holm's correction does not keep."""
    rows = []
    not_kept = lost_to_holm(content["claims"])
    for i, claim in enumerate(content["claims"]):
        mark = NOT_KEPT if i in not_kept and claim["verdict"] in ("confirmed", "contradicted") else ""
        test = f"{claim['test']['t']:.2f} ({claim['test']['df']:.1f})" if "test" in claim else ""
        rows.append(
            [claim["paper"], "; ".join(map(cell_text, claim["ours"])), test, claim["verdict"] + mark, detectable(claim)]
        )
    return table(["paper", "ours", "t (df)", "verdict", "detectable effect"], rows)


def lost_to_holm(rows: Sequence[Claim]) -> set[int]:
    """Indices of the rows whose two-sided p is below LEVEL, but not after Holm's correction for all tests of ``rows``.

    Holm (1979), Scandinavian Journal of Statistics 6.
    """
    tests = {i: claim["test"] for i, claim in enumerate(rows) if "test" in claim}
    p_values = {i: float(2 * stats.t.sf(abs(test["t"]), test["df"])) for i, test in tests.items()}
    ascending = sorted(p_values, key=p_values.__getitem__)
    refuted = takewhile(lambda n: p_values[ascending[n]] <= LEVEL / (len(ascending) - n), range(len(ascending)))
    return {i for i in ascending[len([*refuted]) :] if p_values[i] < LEVEL}


def detectable(claim: Claim) -> str:
    """Of a claim about one estimate that is not shown: the effect that four samples of five would have shown."""
    if not claim["verdict"].startswith("not shown") or "test" not in claim or len(claim["ours"]) != 1:
        return ""
    return number(detectable_effect(claim["ours"][0], claim["test"]["df"]))


def detectable_effect(cell: Estimate, df: float) -> float:
    """(t_.975 + t_.8) standard errors: 80 % power at the two-sided 5 % level, approximated by central quantiles."""
    return float((stats.t.ppf(0.975, df) + stats.t.ppf(0.8, df)) * standard_error(cell))
