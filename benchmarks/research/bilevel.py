"""The claims of SPARKLE (arXiv:2411.14166) and EF-SOBA (arXiv:2405.18858), from the results of ``bilevel.*``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.research.claims import (
    Claim,
    against,
    cell_text,
    estimate,
    exact,
    negative,
    number,
    positive,
    welch,
    zero,
)
from benchmarks.tables import table
from iro_server import JsonObject
from training.bilevel.algorithms.registry import METHODS
from training.bilevel.studies import transient_slopes
from training.bilevel.studies.comparison import ByteCurve, bytes_ratio
from training.bilevel.studies.hyper_cleaning_figure import draw_curves
from training.bilevel.studies.transient_figure import draw_lengths
from training.bilevel.studies.transient_slopes import Lengths, Slope

PAPER_SLOPES = {
    ("gap, every_agent", "ED"): "at most 2",
    ("gap, every_agent", "EXTRA"): "at most 2",
    ("gap, every_agent", "ATC-GT"): "at most 8/3",
    ("gap, every_agent", "D-SOBA"): "at most 4",
    ("n", "ED"): "at most 3",
    ("n", "EXTRA"): "at most 3",
    ("n", "ATC-GT"): "at most 3",
    ("n", "D-SOBA"): "at most 3",
}
COMPRESSED_SHARE = 0.1  # of SOBA's bytes
RANKED = (("ED", "ATC-GT"), ("EXTRA", "ATC-GT"), ("ED/ATC-GT", "ATC-GT"), ("ED", "SLDBO"), ("ED", "MDBO"))


def quadratic(result: JsonObject) -> JsonObject:
    """Quadratics with a known solution. Differences are of log10, paired by problem."""
    rows = [exact(check) for check in result["checks"] if not check["name"].startswith("n · MSE")]
    return {"claims": [*rows, *_topologies(result["topologies"]), *_speedup(result), *_floors(result["compressed"])]}


def _topologies(study: JsonObject) -> list[Claim]:
    """Errors of the second half of the steps; 16 agents on a ring."""
    rows = []
    for level in study["errors"]:
        errors = np.array(study["errors"][level]["adjusted ring"])  # [times, pairs, repeats]
        tails = np.log10(errors[len(errors) // 2 :].mean(0))
        tail_of = dict(zip(study["names"], tails, strict=True))
        for better, worse in (("ED", "ATC-GT"), ("EXTRA", "ATC-GT"), ("ED/ATC-GT", "ATC-GT"), ("ED/ATC-GT", "D-SOBA")):
            gap = estimate(tail_of[better] - tail_of[worse])
            paper = f"ring, {level} heterogeneity: log10 of the error, {better} less {worse}, below zero"
            rows.append(negative(paper, [gap], against(gap, 0)))
    return rows


def _speedup(result: JsonObject) -> list[Claim]:
    study, repeats = result["speedup"], result["config"]["speedup_repeats"]
    rows = []
    for name, bands in study["scaled"].items():
        cells = [
            dict(zip(("mean", "low", "high"), cell, strict=True)) | {"seeds": repeats}
            for cell in zip(bands["mean"], bands["low"], bands["high"], strict=True)
        ]
        sizes = ", ".join(map(str, study["sizes"]))
        paper = f"linear speed-up, {name}: n · mean squared error is the same for n = {sizes} (test: last less first)"
        rows.append(zero(paper, cells, welch(cells[-1], cells[0])))
    return rows


def _floors(study: JsonObject) -> list[Claim]:
    """‖∇Φ‖² over the last quarter, log10, paired by problem."""
    rows = []
    for noise, runs in study["runs"].items():
        floors = {
            name: np.log10([np.mean(repeat["squares"][-(len(repeat["squares"]) // 4) :]) for repeat in repeats])
            for name, repeats in runs.items()
        }
        for name in ("C", "CM"):
            gap = estimate(floors["EF"] - floors[name])
            paper = f"noise {noise}: log10 of ‖∇Φ‖² at the end, EF-SOBA less {name}-SOBA, below zero"
            rows.append(negative(paper, [gap], against(gap, 0)))
    return rows


def transient(result: JsonObject) -> JsonObject:
    """Lengths and slopes of transients. Differences are of log2, paired by problem, at the smallest gap that both
    reach.

    ``result``: of the job, or what this function returns as "lengths".
    """
    gaps = result["config"]["gaps"]
    lengths = result["gaps"]["every_agent"]
    rows: list[Claim] = []
    for name in lengths:
        if name != "D-SOBA":
            rows += _longer("D-SOBA", lengths["D-SOBA"], name, lengths[name], gaps)
    rows += _longer("ATC-GT", lengths["ATC-GT"], "ED", lengths["ED"], gaps)
    rows += _longer("ATC-GT", lengths["ATC-GT"], "ED/ATC-GT", lengths["ED/ATC-GT"], gaps)
    levels = result["levels"]
    for name in lengths:
        rows += _longer(f"{name}, small gap for y and z,", levels["lower"][name], "for x", levels["upper"][name], gaps)
    fitted = transient_slopes.slopes(result, gaps, result["config"]["sizes"])
    slopes = {
        study: {name: _slope(study, name, slope) for name, slope in by_method.items()}
        for study, by_method in fitted.items()
    }
    plotted = {name: result[name] for name in ("config", "gaps", "sizes", "levels")}
    return {"claims": rows, "slopes": slopes, "lengths": plotted}


def _longer(more: str, long: list[Lengths], less: str, short: list[Lengths], gaps: list[float]) -> list[Claim]:
    """The claim that ``more`` has the longer transients; none where no gap has lengths of both in all problems."""
    a, b = np.array(long, dtype=float), np.array(short, dtype=float)  # [repeats, gaps]
    shared = np.flatnonzero(np.isfinite(a).all(0) & np.isfinite(b).all(0))
    if not len(shared):
        return []
    smallest = shared[-1]
    gap = estimate(a[:, smallest] - b[:, smallest])
    paper = f"gap {number(gaps[smallest])}: log2 of the transient iterations, {more} less {less}, above zero"
    return [positive(paper, [gap], against(gap, 0))]


def _slope(study: str, method: str, slope: Slope) -> JsonObject:
    """Beside the paper's; None where a problem, of which ``unfitted`` counts those, has too few lengths for one."""
    complete = [value for value in slope["of_repeats"] if value is not None]
    problems = len(slope["of_repeats"])
    return {
        "paper": PAPER_SLOPES.get(("n" if study.startswith("n from") else study, method), ""),
        "ours": estimate(complete) if len(complete) == problems else None,
        "unfitted": problems - len(complete),
        "problems": problems,
    }


def slopes(content: JsonObject) -> str:
    """Exponents of 1/(1 - ρ) and of n in the transient iterations, beside the paper's."""
    rows = [
        [f"{study}, {name}", row["paper"], _slope_text(row)]
        for study, by_method in content["slopes"].items()
        for name, row in by_method.items()
    ]
    return table(["transient against, method", "paper", "log–log slope"], rows)


def _slope_text(row: JsonObject) -> str:
    if row["ours"] is None:
        return f"none: fewer than three lengths in {row['unfitted']} of {row['problems']} problems"
    return cell_text(row["ours"])


def transient_figure(content: JsonObject, path: Path) -> None:
    draw_lengths(content["lengths"], path)


def problems(result: JsonObject) -> JsonObject:
    """The ready problems, paired by draw of the data."""
    rows: list[Claim] = []
    for study, curves in result["curves"].items():
        score = "error" if study == "policy" else "accuracy"
        rows += _against_d_soba(study, score, curves) if "D-SOBA" in curves else _against_soba(study, curves)
    scores = {
        study: {
            name: {"score": estimate(curve["error" if study == "policy" else "accuracy"][-1]), "scale": curve["scale"]}
            for name, curve in curves.items()
        }
        for study, curves in result["curves"].items()
    }
    return {"claims": rows, "scores": scores}


def hyper_cleaning(result: JsonObject) -> JsonObject:
    """Claims, and accuracy and AUC by method and share of wrong labels."""
    rows: list[Claim] = []
    for corruption, curves in result["curves"].items():
        label = f"{float(corruption):.0%} wrong labels"
        with_dense = {name: curve for name, curve in curves.items() if METHODS[name].compressed or name == "SOBA"}
        rows += _against_d_soba(label, "accuracy", curves) + _pairs(label, curves) + _against_soba(label, with_dense)
    summary = {
        corruption: {
            name: {"accuracy": row["accuracy"], "auc": row["auc"]["mean"], "scale": row["scale"]}
            for name, row in methods.items()
        }
        for corruption, methods in result["summary"].items()
    }
    curves = {
        corruption: {name: _rounded(curve) for name, curve in methods.items()}
        for corruption, methods in result["curves"].items()
    }
    return {"claims": rows, "summary": summary, "curves": curves}


def _pairs(label: str, curves: JsonObject) -> list[Claim]:
    """Final accuracies of methods that the paper ranks, paired by draw."""
    rows = []
    for better, worse in RANKED:
        gap = estimate(np.subtract(curves[better]["accuracy"][-1], curves[worse]["accuracy"][-1]))
        rows.append(positive(f"{label}: accuracy, {better} less {worse}, above zero", [gap], against(gap, 0)))
    return rows


def _rounded(curve: JsonObject) -> JsonObject:
    """A curve's accuracies with the digits that a figure shows."""
    accuracy = [[round(value, 4) for value in point] for point in curve["accuracy"]]
    return {"evaluations": curve["evaluations"], "bytes": curve["bytes"], "accuracy": accuracy}


def cleaning_figure(content: JsonObject, path: Path) -> None:
    draw_curves(content["curves"], path)


def accuracies(content: JsonObject) -> str:
    """Test accuracy of hyper-cleaning by share of wrong labels, and the AUC of x as a detector of them."""
    summary = content["summary"]
    first = next(iter(summary.values()))
    head = ["method", *(f"{float(corruption):.0%}" for corruption in summary), "AUC of x", "step sizes"]
    rows = []
    for method in first:
        cells = [summary[corruption][method] for corruption in summary]
        aucs = ", ".join("" if cell["auc"] is None else f"{cell['auc']:.2f}" for cell in cells)
        rows.append([method, *(cell_text(cell["accuracy"]) for cell in cells), aucs, f"{cells[0]['scale']:g}"])
    return table(head, rows)


def scores(content: JsonObject) -> str:
    """Each ready problem's final score by method, and the scale of its step sizes."""
    rows = [
        [f"{study}, {name}", cell_text(row["score"]), number(row["scale"])]
        for study, methods in content["scores"].items()
        for name, row in methods.items()
    ]
    return table(["problem, method", "relative error (policy) or accuracy", "scale of the steps"], rows)


def _against_d_soba(study: str, score: str, curves: JsonObject) -> list[Claim]:
    rows, diffusion = [], np.array(curves["D-SOBA"][score][-1])
    for name, curve in curves.items():
        if name not in METHODS or not METHODS[name].corrects_heterogeneity:
            continue
        end = np.array(curve[score][-1])
        logarithm = score == "error"
        gap = estimate(np.log10(end / diffusion) if logarithm else end - diffusion)
        quantity = "log10 of the error" if logarithm else score
        paper = f"{study}: {quantity}, {name} less D-SOBA, {'below' if logarithm else 'above'} zero"
        rows.append((negative if logarithm else positive)(paper, [gap], against(gap, 0)))
    return rows


def _against_soba(study: str, curves: JsonObject) -> list[Claim]:
    """The paper claims ten times fewer bytes for EF-SOBA alone."""
    rows = []
    for name, curve in curves.items():
        if not name.startswith("EF"):
            continue
        ratios = [
            bytes_ratio(_of_draw(curve, i), _of_draw(curves["SOBA"], i))["ratio"]
            for i in range(len(curve["accuracy"][0]))
        ]
        cell = estimate(np.log10(ratios))
        paper = f"{study}: log10 of the bytes of {name} over SOBA's, same accuracy, below −1"
        rows.append(negative(paper, [cell], against(cell, np.log10(COMPRESSED_SHARE)), "the interval includes −1"))
    return rows


def _of_draw(curve: JsonObject, draw: int) -> ByteCurve:
    """The curve of one draw, without the start, at which nothing has been sent."""
    points = [i for i, sent in enumerate(curve["bytes"]) if sent > 0]
    return {"bytes": [curve["bytes"][i] for i in points], "accuracy": [[curve["accuracy"][i][draw]] for i in points]}
