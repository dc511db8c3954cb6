"""The claims of ADRL (arXiv:2504.21326) on finite MDPs: results of ``rl.adrl_tabular`` and ``rl.adrl_sepsis``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.research.claims import Claim, against, cell_text, estimate, exact, negative, positive
from benchmarks.tables import table
from iro_server import JsonObject
from rl_suite.adrl_sepsis import select
from rl_suite.adrl_tabular import RULES

EXPONENTS = ("sum", "product", "sum_alone", "product_alone")
RAISED = 16  # times the limit of transitions, at which a verdict must be the same
PAIRS = (("AD-BCQ", "BC"), ("AD-BCQ", "BCQ"), ("AD-BCQ", "BCQf"), ("BCQ", "BC"))


def tabular(result: JsonObject) -> JsonObject:
    """Transitions needed. A sample is one random MDP of each shape: its counts are compared and fitted together."""
    checked = [exact(check) for check in result["checks"]]
    return {name: result[name] for name in ("samples", "exponents")} | _of_counts(checked, result, result["config"])


def tabular_again(content: JsonObject) -> JsonObject:
    """As ``tabular``, from the counts of a results file."""
    checked = [claim for claim in content["claims"] if "test" not in claim]
    return _of_counts(checked, content, content["run"]["config"])


def _of_counts(checked: list[Claim], content: JsonObject, config: JsonObject) -> JsonObject:
    """Claims, and for each criterion and learner how many counts are the limit's."""
    samples, most = content["samples"], config["most"]
    rows = list(checked)
    for rule, title in RULES.items():
        joint, projected = f"{rule}_joint", f"{rule}_projected"
        grows, stays = f"{title}, joint: transitions grow with Π at fixed Σ", f"{title}, projected: they do not"
        rows += [
            _at_any_limit(partial(_compared, title, joint, projected), samples, most, (joint, projected)),
            _at_any_limit(partial(_exponent, grows, joint, True), samples, most, (joint,)),
            _at_any_limit(partial(_exponent, stays, projected, False), samples, most, (projected,)),
        ]
    return {"claims": rows, "limit": {name: _capped(samples, most, (name,)) for name in samples[0]["counts"]}}


def _capped(samples: list[JsonObject], most: int, names: Sequence[str]) -> dict[str, int]:
    counts = [count for row in samples for name in names for count in row["counts"][name]]
    return {"reached": sum(count >= most for count in counts), "of": len(counts)}


def _raised(samples: list[JsonObject], most: int, factor: int) -> list[JsonObject]:
    """``samples`` with counts of the limit ``factor`` times as high: the learner was stopped there."""

    def raised(counts: list[int]) -> list[int]:
        return [factor * count if count >= most else count for count in counts]

    return [row | {"counts": {name: raised(counts) for name, counts in row["counts"].items()}} for row in samples]


def _at_any_limit(
    claim_of: Callable[[list[JsonObject]], Claim], samples: list[JsonObject], most: int, names: Sequence[str]
) -> Claim:
    """The claim on the counts as they are; without a verdict where counts of the limit decide it."""
    claim, raised = claim_of(samples), claim_of(_raised(samples, most, RAISED))
    if claim["verdict"] != raised["verdict"]:
        limit = _capped(samples, most, names)
        claim["verdict"] = (
            f"undecided, because {limit['reached']} of {limit['of']} counts are at the limit: "
            f"{cell_text(raised['ours'][0])} were they {RAISED} times as high"
        )
    return claim


def _logs(samples: list[JsonObject], name: str) -> np.ndarray:
    """log10 of the transitions [shapes, repeats]."""
    return np.log10([row["counts"][name] for row in samples])


def _compared(title: str, joint: str, projected: str, samples: list[JsonObject]) -> Claim:
    gap = estimate((_logs(samples, projected) - _logs(samples, joint)).mean(axis=0))
    paper = f"{title}: log10 of the transitions, projected less joint, mean of shapes, below zero"
    return negative(paper, [gap], against(gap, 0))


def _exponent(paper: str, name: str, grows: bool, samples: list[JsonObject]) -> Claim:
    """Of the exponent of Π. That counts do not grow is refuted by an exponent above 0 alone."""
    axes = np.log([[row[axis] for row in samples] for axis in ("sum", "product")])
    design = np.linalg.pinv(np.vstack([np.ones(len(samples)), axes]).T)
    beta = estimate(np.log(10) * (design @ _logs(samples, name))[2])
    claim = positive(f"{paper} (exponent)", [beta], against(beta, 0), "the interval of the exponent includes zero")
    if not grows:
        claim["verdict"] = "contradicted" if claim["verdict"] == "confirmed" else "confirmed"
    return claim


def exponents(content: JsonObject) -> str:
    """Exponents of Σ|A_k| and Π|A_k|, fitted together and alone, and how many counts are those of the limit."""
    rows = []
    for rule, title in RULES.items():
        for learner in ("joint", "projected"):
            fit, limit = (content[part][f"{rule}_{learner}"] for part in ("exponents", "limit"))
            fits = (_exponent_text(fit[name]) for name in EXPONENTS)
            rows.append([title, learner, *fits, f"{limit['reached']} of {limit['of']}"])
    return table(["criterion", "learner", "α", "β", "over Σ only", "over Π only", "counts at the limit"], rows)


def _exponent_text(values: list[float]) -> str:
    mean, low, high = values
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


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
    below_min_ess = {
        name: {learner: cell["below_min_ess"] for learner, cell in summary["selected"].items()}
        for name, summary in result["results"].items()
    }
    parts = {"claims": rows, "values": values, "exact": exact_values, "estimates": estimates}
    return parts | {"below_min_ess": below_min_ess}


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
