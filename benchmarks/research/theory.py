"""The claims of the transformer-theory papers, from the results of ``theory.*``."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.research.claims import NOISE, Claim, against, at, exact, negative, paired, positive, zero
from benchmarks.tables import table
from iro_server import JsonObject


def gradient_flow(result: JsonObject) -> JsonObject:
    """arXiv:2412.16683. Its abstract alone was available: the claims are the derived ones."""
    studies = result["studies"]
    escape, sgd = studies["escape"]["slope"], studies["sgd"]["slope"]
    rows = [exact(check) for check in result["checks"] if check["name"] != "escape time over log(1/scale)"]
    rows += [
        zero("escape time ∝ log(1/scale)/λ²: slope 1", [escape], against(escape, 1)),
        zero("SGD leaves the ODE by O(√rate): slope ½", [sgd], against(sgd, 0.5)),
        *(_all_global(studies["general"], name) for name in ("end", "keys_queries_end")),
    ]
    return {"claims": rows}


def _all_global(general: JsonObject, name: str) -> Claim:
    ends = general["data"]["gaussian_exact"][name]
    reached = sum(loss < 1.01 * general["least_loss"] for loss in ends)
    weights = {"end": "W", "keys_queries_end": "KᵀQ"}[name]
    paper = f"the full system with {weights}, d 2: number of flows, and of those that end at the global optimum"
    verdict = "confirmed" if reached == len(ends) else "contradicted"
    return {"paper": paper, "ours": [{"mean": len(ends)}, {"mean": reached}], "verdict": verdict}


def cot(result: JsonObject) -> JsonObject:
    """arXiv:2410.02167. Its numbers are read by eye from figures."""
    studies = result["studies"]
    curves = studies["attention"]["curves"]
    same, other = curves["same_step_same_pattern"], curves["same_step_other_pattern"]
    peak = other["mean"].index(max(other["mean"]))
    first, last = at(same, 0), at(same, -1)
    start, highest, end = at(other, 0), at(other, peak), at(other, -1)
    rows = [
        positive("attention on the same step and pattern rises: .14 to .94", [first, last], paired(last, first)),
        positive(
            "attention on the same step, other patterns, from its start up to .41 and down to .05 (the weaker of both)",
            [start, highest, end],
            min(paired(highest, start), paired(highest, end), key=lambda test: test["t"]),
        ),
    ]
    for name, kind, length, paper in (
        ("alpha", "cot", 20, "CoT error falls with α' .4, .6, .8, 1 (paper, 100 examples: .03 to .001; ours, 20)"),
        ("tau", "cot", 20, "CoT error falls with τ .4, .5, .6, .7 (paper, 100 examples: .012 to .001; ours, 20)"),
        ("rho", "cot", 20, "CoT error falls with ρ .5, .6, .7, .8 (paper, 100 examples: .028 to .0018; ours, 20)"),
        ("alpha", "icl", 100, "ICL error falls with α' .4, .6, .8, 1 (100 examples): .02 to .0017"),
        ("tau_o", "icl", 100, "ICL error falls with τ_o .3, .4, .5, .6 (100 examples): .028 to .0025"),
        ("rho_o", "icl", 100, "ICL error falls with ρ_o .3, .4, .5, .6 (100 examples): .04 to .0038"),
    ):
        index = studies[name]["lengths"].index(length)
        cells = [at(row, index) for row in studies[name][kind]]
        rows.append(positive(paper, cells, paired(cells[0], cells[-1])))
    return {"claims": [*rows, *_conditions(studies), *_exponents(studies)], "speed": studies["speed"]}


def _conditions(studies: JsonObject) -> list[Claim]:
    """Where Condition 1 fails, and on the slides' matrices; the three-layer model."""
    curves, slides = studies["condition"]["curves"], studies["matrices"]["curves"]
    without, in_context = curves["cot_without"], curves["icl_without"]
    rows = [
        positive(
            "without Condition 1, CoT error falls with the number of examples (2, 100)",
            [at(without, 0), at(without, -1)],
            paired(at(without, 0), at(without, -1)),
        ),
        positive(
            "without Condition 1, ICL error stays high, .55 to .7, above CoT's (100 examples)",
            [at(in_context, -1), at(without, -1)],
            paired(at(in_context, -1), at(without, -1)),
        ),
        positive(
            "on the slides' matrices ICL error stays above CoT's (100 examples)",
            [at(slides["icl"], -1), at(slides["cot"], -1)],
            paired(at(slides["icl"], -1), at(slides["cot"], -1)),
        ),
    ]
    for layer, curve, reading in zip((1, 2, 3), studies["layers"]["layers"], (".79", ".78", ".70"), strict=True):
        cells = [at(curve, 0), at(curve, -1)]
        paper = f"three layers: attention in layer {layer} rises from .35 to {reading}"
        rows.append(positive(paper, cells, paired(cells[1], cells[0])))
    return rows


def _exponents(studies: JsonObject) -> list[Claim]:
    """Bounds of the theorems: an exponent above −2 grows more slowly than the bound."""
    fits = studies["required"]["fits"]
    names = {"alpha": "α'", "tau": "τ", "rho": "ρ"}
    rows = [
        _exponent(f"examples needed grow no faster than {names[name]}^(−2): log–log slope above −2", fit, positive)
        for name, fit in fits.items()
    ]
    slope = studies["rates"]["slope"]
    paper = "steps to loss .03 grow no faster than α^(−2): log–log slope above −2"
    rows.append(positive(paper, [slope], against(slope, studies["rates"]["expected"])))
    for name, fit in studies["scaling"]["fits"].items():
        paper = f"steps to loss .03 grow no faster than {name}^{fit['expected']}: log–log slope below {fit['expected']}"
        rows.append(_exponent(paper, fit, negative))
    return rows


def _exponent(paper: str, fit: JsonObject, claim_of: Callable[..., Claim], because: str = NOISE) -> Claim:
    """A `required_fit`'s slope against the theorem's exponent; values beyond what was tried are not in the slope."""
    at_limit, slope = sum(fit["at_limit"]), fit["slope"]
    if at_limit:
        tried = len(fit["at_limit"]) * fit["needed"]["seeds"]
        paper += f" ({at_limit} of {tried} values beyond what was tried, left out)"
    if slope["seeds"] < 2:
        verdict = "not shown at this scale, because fewer than two models have three values within what was tried"
        return {"paper": paper, "ours": [], "verdict": verdict}
    return claim_of(paper, [slope], against(slope, fit["expected"]), because)


def icl(result: JsonObject) -> JsonObject:
    """arXiv:2402.15607. Its numbers are read by eye from figures; context 20."""
    studies = result["studies"]
    curves = studies["mechanism"]["curves"]
    rows = []
    for name, paper in (
        ("query_norm", "‖W_Q p‖ grows in training: .4 to 1.75"),
        ("attention", "attention on the query's pattern rises: .42 to 1"),
    ):
        cells = [at(curves[name], 0), at(curves[name], -1)]
        rows.append(positive(paper, cells, paired(cells[1], cells[0])))
    rows += [*_domains(studies), *_pruning(studies), *_growth(studies), *_classical(studies)]
    return {"claims": rows, "speed": studies["speed"]}


def _domains(studies: JsonObject) -> list[Claim]:
    unseen, s1, alpha = studies["unseen"], studies["s1"], studies["alpha"]
    cell = at(unseen["places"]["unseen"]["error"], unseen["lengths"].index(20))
    rows = [negative("error on unseen tasks at most .001", [cell], against(cell, 1e-3))]
    tasks = studies["tasks"]
    cell = at(tasks["rows"][0], tasks["lengths"].index(15))
    paper = f"{tasks['counts'][0]} training tasks (M1) suffice: error on unseen tasks at most .001 (ours: context 15)"
    rows.append(negative(paper, [cell], against(cell, 1e-3), "the interval includes .001"))
    deep = [row["error"] for name, row in studies["layers"]["places"].items() if name.startswith("s1")]
    paper = "three layers: out-of-domain error falls with S_1 .5, .7, .9, 1.1, 1.3: .045 to .002"
    rows.append(positive(paper, deep, paired(deep[0], deep[-1])))
    for kind, length in (("mean", 20), ("orthonormal", 10)):  # at 20, errors on orthonormal patterns are near 0
        cells = [at(row, s1["lengths"].index(length)) for row in s1["kinds"][kind]]
        norm = {"mean": "of norm β S_1/√2", "orthonormal": "of norm β"}[kind]
        paper = f"out-of-domain error falls with S_1 .5, .7, .9, 1.1, 1.3: .045 to .002 ({kind} patterns, {norm}"
        paper += f"; context {length})"
        rows.append(positive(paper, cells, paired(cells[0], cells[-1])))
    for place, readings in (("in_domain", ".07, .048, .02"), ("out_of_domain", ".07, .048, .01")):
        cells = [at(row, alpha["lengths"].index(10)) for row in alpha["places"][place]][-3:]
        paper = f"error {place.replace('_', ' ')} falls with α' .8, .9, 1: {readings} (context 20; ours: 10)"
        rows.append(positive(paper, cells, paired(cells[0], cells[-1])))
    return rows


def _pruning(studies: JsonObject) -> list[Claim]:
    """Hinge loss with 40 % of the neurons removed."""
    pruning = studies["pruning"]
    index = pruning["fractions"].index(0.4)
    small, random, large = (at(pruning["orders"][order]["hinge"], index) for order in ("small", "random", "large"))
    paper = "hinge loss without 40 % of the neurons: smallest first below random (.03, .045)"
    return [
        positive(paper, [small, random], paired(random, small)),
        positive("the same: largest first above random", [large, random], paired(large, random)),
    ]


def _growth(studies: JsonObject) -> list[Claim]:
    rates, fits = studies["rates"], studies["required"]["fits"]
    names = {"alpha": "α", "beta": "β"}
    rows = [
        positive(
            f"steps to loss .05 grow no faster than {names[name]}^(−⅔): log–log slope above −⅔",
            [fit["slope"]],
            against(fit["slope"], rates["expected"]),
            "the interval of the slope includes −⅔",
        )
        for name, fit in rates["fits"].items()
    ]
    fit = studies["scaling"]["fits"]["M1"]
    first, last = fit["values"][0], fit["values"][-1]
    bound = f"log–log slope below {fit['expected']}"
    paper = f"steps to loss .05 grow no faster than M1 √log M1 (M1 {first} to {last}): {bound}"
    rows.append(_exponent(paper, fit, negative))
    places = {"unseen": "context, unseen tasks", "mean": "context, out of domain", "training": "training context"}
    return rows + [
        _exponent(
            f"{places[name]} grows no faster than α^(−1): log–log slope above −1",
            fit,
            positive,
            "the interval of the slope includes −1",
        )
        for name, fit in fits.items()
    ]


def _classical(studies: JsonObject) -> list[Claim]:
    """In-context learning below a linear SVM; α' .8, context 20."""
    rows = []
    for kind, by_alpha in studies["classical"]["kinds"].items():
        errors = {name: at(bands, -1) for name, bands in by_alpha["0.8"].items()}
        in_context = errors.pop("in_context")
        linear = errors["linear SVM"]
        paper = f"in-context learning errs less than a linear SVM, α' .8, {kind} patterns: .001, .012"
        rows.append(positive(paper, [in_context, linear], paired(linear, in_context)))
    return rows


def speed(content: JsonObject) -> str:
    """Milliseconds of a run and SGD step."""
    times, ratio = content["speed"]["milliseconds"], content["speed"]["ratio"]["plain_autograd_one_run"]
    cells = [f"{times[name]:.2f}" for name in ("batch_of_20_runs", "same_code_one_run", "plain_autograd_one_run")]
    head = ["job", "runs as a batch", "same code, run by run", "plain autograd, run by run", "ratio"]
    return table(head, [[content["run"]["benchmark"], *cells, f"{ratio:.1f}"]])
