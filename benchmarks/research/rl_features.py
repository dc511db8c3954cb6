"""The claims of SF-DQN with GPI (arXiv:2405.15920), from the results of ``rl.sf_gpi``. Differences are paired by
agent's seed."""

from __future__ import annotations

import numpy as np

from benchmarks.research.claims import Claim, against, cell_text, estimate, exact, number, positive
from benchmarks.tables import table
from iro_server import JsonObject

REACHER = {
    "reacher_trained": "reacher, the four training tasks",
    "reacher_several": "reacher, unseen: approach three targets",
    "reacher_away": "reacher, unseen: avoid one target",
}


def successor_features(result: JsonObject) -> JsonObject:
    """Claims, each method's scores, and the slopes and gaps of the exact studies."""
    rows = [exact(check) for check in result["checks"]]
    rows += _above("SFQL", "four rooms, the last five tasks", result["four_rooms"]["per_seed"])
    for part, title in REACHER.items():
        rows += _above("SF-DQN", title, result[part]["per_seed"])
    learning = result["reacher_while_learning"]["per_seed"]
    rows += _above("SF-DQN", "reacher, the task being learnt, tasks 2 to 4, over their evaluations", learning)
    scores = {"four rooms, the last five tasks": _scores(result["four_rooms"])}
    scores |= {title: _scores(result[part]) for part, title in REACHER.items()}
    scores["reacher, the task being learnt, tasks 2 to 4"] = _scores(result["reacher_while_learning"])
    speed = result["speed"]
    studies = {
        "gap of SF-GPI to Q*": result["bounds"]["gaps"]["sf_gpi"],
        "gap of DQN-GPI to Q*": result["bounds"]["gaps"]["dqn_gpi"],
        "log-log slope of ‖Θ_t − Θ*‖ over t": result["teacher"]["time"]["slope"],
        "log-log slope of ‖Θ_T − Θ*‖ over the size of the replay": result["teacher"]["replay"]["slope"],
        "log-log slope of the error of Q over ‖w_0 − w*‖": result["teacher"]["w_error"]["slope"],
        "log-log slope of SF-GPI's gap over ‖Δw‖": result["distance"]["slopes"]["sf_gpi"],
        "log-log slope of the gap of the old Q* over ‖Δw‖": result["distance"]["slopes"]["q"],
        f"updates of {speed['tasks']} tasks, batched ÷ a loop that computes GPI once": speed["ratio_to_loop"],
        "… ÷ a loop that computes GPI for each task": speed["ratio_to_loop_repeating_gpi"],
    }
    return {"claims": rows, "scores": scores, "studies": studies}


def _above(ours: str, title: str, per_seed: JsonObject) -> list[Claim]:
    rows = []
    for rival in per_seed:
        if rival != ours:
            gap = estimate(np.subtract(per_seed[ours], per_seed[rival]))
            rows.append(positive(f"{title}: {ours} above {rival}", [gap], against(gap, 0)))
    return rows


def _scores(part: JsonObject) -> JsonObject:
    """Mean over tasks, by method, with Student's interval over agents."""
    return {method: estimate(values) for method, values in part["per_seed"].items()}


def scores(content: JsonObject) -> str:
    """Scores by kind of task and method."""
    rows = [
        [title, method, cell_text(cell)]
        for title, methods in content["scores"].items()
        for method, cell in methods.items()
    ]
    return table(["tasks", "method", "return"], rows)


def studies(content: JsonObject) -> str:
    """Slopes, gaps and speeds."""
    return table(["study", "measured"], [[name, number(value)] for name, value in content["studies"].items()])
