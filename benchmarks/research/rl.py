"""The claims of ADRL (arXiv:2504.21326), from the results of ``rl.*``. Differences are paired by data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.research.claims import Claim, against, cell_text, estimate, number, positive
from benchmarks.tables import table
from iro_server import JsonObject

RIVALS = ("BCQ", "BCQf")


def doses(result: JsonObject) -> JsonObject:
    """Claims, and a row for each interaction and n: exact values and the settings that tuning chose."""
    rows: list[Claim] = []
    by_interaction: dict[float, list[JsonObject]] = {}
    for row in result["rows"]:
        by_interaction.setdefault(row["interaction"], []).append(row)
    for interaction, cells in by_interaction.items():
        for rival in RIVALS:
            rows += [_gap(cell, rival) for cell in cells] + [_trend(interaction, cells, rival)]
    return {"claims": rows, "rows": [_without_samples(row) for row in result["rows"]]}


def gaps(row: JsonObject, rival: str) -> np.ndarray:
    """[data sets]: the true value of AD-BCQ less the rival's."""
    return np.subtract(row["learners"]["AD-BCQ"]["values"], row["learners"][rival]["values"])


def _gap(row: JsonObject, rival: str) -> Claim:
    gap = estimate(gaps(row, rival))
    paper = f"interaction {row['interaction']:g}, {row['doses']} × {row['doses']} doses: AD-BCQ above {rival}"
    return positive(paper, [gap], against(gap, 0))


def _trend(interaction: float, rows: Sequence[JsonObject], rival: str) -> Claim:
    """The slope over n of each data set's gap."""
    by_size = np.array([gaps(row, rival) for row in rows])
    slope = estimate(np.polyfit([row["doses"] for row in rows], by_size, 1)[0])
    paper = f"interaction {interaction:g}: the gap to {rival} grows with the number of doses (slope for one dose)"
    return positive(paper, [slope], against(slope, 0), "the interval of the slope includes zero")


def _without_samples(row: JsonObject) -> JsonObject:
    learners = {
        name: {"value": estimate(learner["values"])} | {key: learner[key] for key in ("updates", "threshold")}
        for name, learner in row["learners"].items()
    }
    return row | {"learners": learners}


def dose_values(content: JsonObject) -> str:
    """The exact value of each learner's policy."""
    learners = list(content["rows"][0]["learners"])
    head = ["interaction, n", "optimal", "clinicians", "logged transitions", *learners, "updates, threshold"]
    rows = []
    for row in content["rows"]:
        settings = (f"{learner['updates']}, {learner['threshold']:g}" for learner in row["learners"].values())
        rows.append(
            [
                f"{row['interaction']:g}, {row['doses']}",
                number(row["optimal"]),
                number(row["behaviour"]),
                f"{row['transitions']:.0f}",
                *(cell_text(learner["value"]) for learner in row["learners"].values()),
                "; ".join(settings),
            ]
        )
    return table(head, rows)
