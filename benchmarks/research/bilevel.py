"""The claims of SPARKLE (arXiv:2411.14166) and EF-SOBA (arXiv:2405.18858), from the results of ``bilevel.*``."""

from __future__ import annotations

import numpy as np

from benchmarks.research.claims import Claim, against, estimate, exact, negative, positive, welch, zero
from iro_server import JsonObject
from training.bilevel.algorithms.registry import METHODS
from training.bilevel.studies.comparison import bytes_ratio

COMPRESSED_SHARE = 0.1  # of SOBA's bytes


def quadratic(result: JsonObject) -> JsonObject:
    """Quadratics with a known solution. Differences are of log10, paired by problem."""
    rows = [exact(check) for check in result["checks"] if not check["name"].startswith("n · MSE")]
    return {"claims": [*rows, *_topologies(result["topologies"]), *_speedup(result), *_floors(result["compressed"])]}


def _topologies(study: JsonObject) -> list[Claim]:
    """Errors of the second half of the steps; 16 agents on a ring."""
    rows = []
    for level in study["errors"]:
        errors = np.array(study["errors"][level]["ring"])  # [times, pairs, repeats]
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


def problems(result: JsonObject) -> JsonObject:
    """The ready problems, paired by draw of the data."""
    rows: list[Claim] = []
    for study, curves in result["curves"].items():
        score = "error" if study == "policy" else "accuracy"
        rows += _against_d_soba(study, score, curves) if "D-SOBA" in curves else _against_soba(study, curves)
    return {"claims": rows}


def _against_d_soba(study: str, score: str, curves: JsonObject) -> list[Claim]:
    rows, diffusion = [], np.array(curves["D-SOBA"][score][-1])
    for name, curve in curves.items():
        if not METHODS[name].corrects_heterogeneity:
            continue
        end = np.array(curve[score][-1])
        logarithm = score == "error"
        gap = estimate(np.log10(end / diffusion) if logarithm else end - diffusion)
        quantity = "log10 of the error" if logarithm else score
        paper = f"{study}: {quantity}, {name} less D-SOBA, {'below' if logarithm else 'above'} zero"
        rows.append((negative if logarithm else positive)(paper, [gap], against(gap, 0)))
    return rows


def _against_soba(study: str, curves: JsonObject) -> list[Claim]:
    rows = []
    for name, curve in curves.items():
        if name == "SOBA":
            continue
        ratios = []
        for i in range(len(curve["accuracy"][0])):
            one, dense = (
                {"bytes": c["bytes"][1:], "accuracy": [[scores[i]] for scores in c["accuracy"][1:]]}
                for c in (curve, curves["SOBA"])
            )
            ratios.append(bytes_ratio(one, dense)["ratio"])  # type: ignore[arg-type]
        cell = estimate(np.log10(ratios))
        paper = f"{study}: log10 of the bytes of {name} over SOBA's, same accuracy, below −1"
        rows.append(negative(paper, [cell], against(cell, np.log10(COMPRESSED_SHARE)), "the interval includes −1"))
    return rows
