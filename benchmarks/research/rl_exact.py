"""The claims of ADRL (arXiv:2504.21326) on finite MDPs: results of ``rl.adrl_tabular`` and ``rl.adrl_sepsis``."""

from __future__ import annotations

import numpy as np

from benchmarks.research.claims import Claim, against, cell_text, estimate, exact, negative, positive
from benchmarks.tables import table
from iro_server import JsonObject
from rl_suite.adrl_sepsis import select
from rl_suite.adrl_tabular import RULES

EXPONENTS = ("sum", "product", "sum_alone", "product_alone")
PAIRS = (("AD-BCQ", "BC"), ("AD-BCQ", "BCQ"), ("AD-BCQ", "BCQf"), ("BCQ", "BC"))


def tabular(result: JsonObject) -> JsonObject:
    """Transitions needed. A sample is one random MDP of each shape: its counts are compared and fitted together."""
    samples = result["samples"]
    axes = np.log([[row[axis] for row in samples] for axis in ("sum", "product")])
    design = np.linalg.pinv(np.vstack([np.ones(len(samples)), axes]).T)
    rows = [exact(check) for check in result["checks"]]
    for rule, title in RULES.items():
        joint, projected = (
            np.log10([row["counts"][f"{rule}_{learner}"] for row in samples]) for learner in ("joint", "projected")
        )  # [shapes, repeats]
        gap = estimate((projected - joint).mean(axis=0))
        paper = f"{title}: log10 of the transitions, projected less joint, mean of shapes, below zero"
        rows.append(negative(paper, [gap], against(gap, 0)))
        betas = [estimate(np.log(10) * (design @ counts)[2]) for counts in (joint, projected)]
        rows.append(_exponent(f"{title}, joint: transitions grow with Π at fixed Σ", betas[0], grows=True))
        rows.append(_exponent(f"{title}, projected: they do not", betas[1], grows=False))
    capped = sum(row["capped"] for row in samples)
    counts = sum(len(values) for row in samples for values in row["counts"].values())
    fits = {name: result[name] for name in ("samples", "exponents")}
    return {"claims": rows, "limit": {"reached": capped, "of": counts}, **fits}


def exponents(content: JsonObject) -> str:
    """Exponents of Σ|A_k| and Π|A_k|, fitted together and alone."""
    rows = []
    for rule, title in RULES.items():
        for learner in ("joint", "projected"):
            fit = content["exponents"][f"{rule}_{learner}"]
            rows.append([title, learner, *(_exponent_text(fit[name]) for name in EXPONENTS)])
    return table(["criterion", "learner", "α", "β", "over Σ only", "over Π only"], rows)


def _exponent_text(values: list[float]) -> str:
    mean, low, high = values
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _exponent(paper: str, beta: JsonObject, grows: bool) -> Claim:
    """Of the exponent of Π. That counts do not grow is refuted by an exponent above 0 alone."""
    claim = positive(f"{paper} (exponent)", [beta], against(beta, 0), "the interval of the exponent includes zero")
    if not grows:
        claim["verdict"] = "contradicted" if claim["verdict"] == "confirmed" else "confirmed"
    return claim


def sepsis(result: JsonObject) -> JsonObject:
    """True values of the policies that validation selects, paired by data set."""
    rows = [exact(check) for check in result["checks"]]
    values: JsonObject = {}
    for name, summary in result["results"].items():
        learners = list(summary["selected"])
        true = {
            learner: [row["true"] for row in _selected(summary["rows"], learner, result["config"])]
            for learner in learners
        }
        values[name] = {learner: estimate(samples) for learner, samples in true.items()}
        for better, worse in PAIRS:
            gap = estimate(np.subtract(true[better], true[worse]))
            rows.append(positive(f"{name}: {better} above {worse}", [gap], against(gap, 0)))
    exact_values = {name: {key: row[key] for key in ("optimal", "behaviour")} for name, row in result["exact"].items()}
    estimates = {
        name: {
            learner: {column: summary["selected"][learner][column] for column in ("test_wis", "test_ess", "test_fqe")}
            for learner in summary["selected"]
        }
        for name, summary in result["results"].items()
    }
    return {"claims": rows, "values": values, "exact": exact_values, "estimates": estimates}


def _selected(rows: list[JsonObject], learner: str, config: JsonObject) -> list[JsonObject]:
    """The selected row of each data set."""
    return [
        select([row for row in rows if (row["learner"], row["dataset"]) == (learner, n)], config["min_ess"])
        for n in range(config["datasets"])
    ]


def sepsis_values(content: JsonObject) -> str:
    """True values beside estimates from logs."""
    rows = []
    for name, learners in content["values"].items():
        for learner, value in learners.items():
            of_logs = content["estimates"][name][learner]
            cells = [cell_text(cell | {"mean": cell["value"]}) for cell in of_logs.values()]
            rows.append([f"{name}, {learner}", cell_text(value), *cells])
    return table(["patients, learner", "true value", "WIS, test", "ESS", "FQE, test"], rows)
