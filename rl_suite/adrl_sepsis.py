"""Offline learners on two sepsis MDPs whose exact values are known: what they are worth, and what estimators say."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from rl_suite.bcq import THRESHOLDS, OfflineAgent, OfflineConfig
from rl_suite.mdp import MDP, expected_return, greedy, icu_sepsis, optimal_q, uniform
from rl_suite.offline import Episodes, collect, pareto
from rl_suite.ope import fqe, soften, wis
from rl_suite.projection import bias
from rl_suite.sepsis_sim import HORIZON, arrival_rewards, sepsis_mdp, variables
from rl_suite.stats import interval, mean
from training.run import Job, JobConfig, Run

NATURAL = ((0, 2), (1,))  # of the simulator: antibiotics and vasopressors meet in the blood pressure
LEARNERS: dict[str, dict[str, Any]] = {
    "BC": {"kind": "bc"},
    "BCQ": {"kind": "bcq"},
    "BCQf": {"kind": "bcqf"},
    "AD-BCQ": {"kind": "ad-bcq"},
    "AD-BCQ, natural blocks": {"kind": "ad-bcq", "blocks": NATURAL},
}
GOLDEN = {"ICU-Sepsis": {"optimal": 0.8751, "behaviour": 0.7818}, "simulator": {"optimal": 0.7418}}


class Config(JobConfig):
    """``datasets``: how many independent ones, each with its networks; ``episodes``: of each of its three parts.

    ``epsilon``: evaluated policies are (1 − ε) greedy + ε π_b; ``min_ess``: of the policy to be chosen by WIS.
    """

    datasets: int = 5
    episodes: int = 1000
    thresholds: tuple[float, ...] = THRESHOLDS
    updates: int = 2000
    polyak: float = 0.005
    epsilon: float = 0.01
    min_ess: float = 50.0


@dataclass(frozen=True)
class Patients:
    """``features`` [S, J]: active features of a state; ``arrival`` [S]: reward of entering it; ``behaviour`` [S, A]."""

    mdp: MDP
    features: np.ndarray
    arrival: np.ndarray
    behaviour: np.ndarray
    horizon: int


@cache
def patients(name: str) -> Patients:
    """ICU-Sepsis under its clinicians, or the simulator under a short-sighted policy (γ = 0.5), half of the time."""
    if name == "ICU-Sepsis":
        mdp, expert = icu_sepsis()
        survival = np.zeros(len(mdp.R))
        survival[714] = 1.0
        return Patients(mdp, np.arange(len(mdp.R))[:, None], survival, expert, 1000)
    mdp, v = sepsis_mdp(), variables()
    levels = v.max(axis=0) + 1
    features = v + np.concatenate([[0], levels.cumsum()[:-1]])
    myopic = greedy(optimal_q(replace(mdp, gamma=0.5)))
    behaviour = 0.5 * myopic + 0.5 * uniform(np.ones(mdp.R.shape, bool))
    return Patients(mdp, features, arrival_rewards(), behaviour, HORIZON)


def run(config: Config, run: Run) -> dict[str, Any]:
    run.planned_steps = 2 + (2 * len(LEARNERS) - 1) * config.datasets
    policies = 7 * len(config.thresholds) + 2  # of a dataset of each kind: seven learners by threshold, and BC's
    seconds = config.datasets * policies * (0.2 + 2e-3 * config.updates)  # as seen on two busy cores
    run.emit("message", f"about {math.ceil(seconds / 60)} minutes")
    exact = {name: run.step(f"exact-{i}", partial(_exact, name)) for i, name in enumerate(GOLDEN)}
    for name, golden in GOLDEN.items():
        for policy, expected in golden.items():
            got = exact[name][policy]
            run.check(f"{name} {policy}", expected=expected, got=got, holds=abs(got - expected) < 1e-4)
    worse, better = (exact["simulator"]["bias"][blocks]["decomposed"][1] for blocks in ("each alone", "natural"))
    run.check("the natural blocks lose less", expected=f"> {worse:.4f}", got=better, holds=better > worse)
    chosen: dict[str, Any] = {}
    for i, name in enumerate(GOLDEN):
        learners = [learner for learner in LEARNERS if name == "simulator" or learner != "AD-BCQ, natural blocks"]
        found = []
        for n in range(config.datasets):
            steps = [f"learn-{i}-{n}-{learner}".replace(", ", "-").replace(" ", "-") for learner in learners]
            each = [
                run.step(step, partial(_learn, name, n, learner, config, run))
                for step, learner in zip(steps, learners, strict=True)
            ]
            found.append([row for rows in each for row in rows])
        chosen[name] = {"rows": [row for rows in found for row in rows]} | _summary(found, config, run)
        for line in chosen[name]["verdicts"]:
            run.emit("message", f"{name}: {line}")
    return {"exact": exact, "results": chosen}


def _exact(name: str) -> dict[str, Any]:
    found = patients(name)
    q = optimal_q(found.mdp)
    policies = {
        "optimal": greedy(q, found.mdp.admissible),
        "behaviour": found.behaviour,
        "random": uniform(np.ones_like(q, bool)),
    }
    values: dict[str, Any] = {key: expected_return(found.mdp, policy) for key, policy in policies.items()}
    blocks = {"each alone": None} | ({"natural": NATURAL} if name == "simulator" else {})
    return values | {"bias": {key: asdict(bias(found.mdp, parts)) for key, parts in blocks.items()}}


def _learn(name: str, n: int, learner: str, config: Config, run: Run) -> list[dict[str, Any]]:
    """A row for each threshold, learnt from one dataset: estimates on its validation and test parts."""
    found = patients(name)
    rng = run.rng(0, list(GOLDEN).index(name), n)
    train, *rest = (
        collect(found.mdp, found.arrival, found.behaviour, config.episodes, rng, found.horizon)
        for _ in ("train", "validate", "test")
    )
    taus = config.thresholds if learner != "BC" else (0.0,)
    agent = OfflineAgent(
        spaces.MultiDiscrete(np.array(found.mdp.sizes)),
        found.features,
        OfflineConfig(
            **LEARNERS[learner],
            thresholds=taus,
            updates=config.updates,
            polyak=config.polyak,
            gamma=found.mdp.gamma,
            seed=run.derive_seed(1, n),
        ),
    )
    policies = agent.learn(train).greedy()
    rows = [
        {"learner": learner, "dataset": n, "threshold": tau} | _judge(found, actions, rest, config)
        for tau, actions in zip(taus, policies, strict=True)
    ]
    for row in rows:
        run.metrics({"step": n, "patients": name} | row)
    return rows


def _judge(found: Patients, actions: np.ndarray, parts: list[Episodes], config: Config) -> dict[str, float]:
    policy = np.eye(found.behaviour.shape[1])[actions]
    soft, gamma = soften(policy, found.behaviour, config.epsilon), found.mdp.gamma
    row = {"true": expected_return(found.mdp, soft)}
    for part, data in zip(("validation", "test"), parts, strict=True):
        row[f"{part}_wis"], row[f"{part}_ess"] = wis(data, soft, gamma)
        row[f"{part}_fqe"] = fqe(data, soft, found.mdp.start, gamma)
    return row


def select(rows: list[dict[str, Any]], min_ess: float) -> dict[str, Any]:
    """The threshold of the highest validation WIS among those of ``min_ess``, or of the highest ESS if none has it."""
    enough = [row for row in rows if row["validation_ess"] >= min_ess]
    if enough:
        return max(enough, key=lambda row: row["validation_wis"])
    return max(rows, key=lambda row: row["validation_ess"])


def _summary(found: list[list[dict[str, Any]]], config: Config, run: Run) -> dict[str, Any]:
    learners = list(dict.fromkeys(row["learner"] for row in found[0]))
    picked = {
        learner: [select([row for row in rows if row["learner"] == learner], config.min_ess) for rows in found]
        for learner in learners
    }
    columns = ("true", "test_wis", "test_ess", "test_fqe")
    table = {
        learner: {column: _interval([row[column] for row in rows], run) for column in columns}
        | {"thresholds": [row["threshold"] for row in rows]}
        for learner, rows in picked.items()
    }
    differences, verdicts = {}, []
    for x, y in combinations(learners, 2):
        gaps = [a["true"] - b["true"] for a, b in zip(picked[x], picked[y], strict=True)]
        found_gap = differences[f"{x} less {y}"] = _interval(gaps, run)
        low, high = found_gap["low"], found_gap["high"]
        verdict = "within noise" if low <= 0 <= high else f"{x if low > 0 else y} is better"
        verdicts.append(f"{x} less {y}: {found_gap['value']:+.4f} [{low:+.4f}, {high:+.4f}], {verdict}")
    return {"selected": table, "differences": differences, "verdicts": verdicts}


def _interval(scores: list[float], run: Run) -> dict[str, float]:
    return interval(mean, np.array(scores)[:, None], rng=run.rng(2)).plain()


def draw(folder: Path) -> None:
    """Write figures/sepsis.png from result.json: WIS against ESS over thresholds, and the true values beside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads((folder / "result.json").read_text())
    figure, panels = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for (left, right), (name, found) in zip(panels, result["results"].items(), strict=True):
        exact = result["exact"][name]
        for i, learner in enumerate(found["selected"]):
            rows = [row for row in found["rows"] if row["learner"] == learner]
            points = [(row["validation_ess"], row["validation_wis"]) for row in rows]
            front = sorted(points[j] for j in pareto(points))
            left.plot(*zip(*points, strict=True), ".", color=f"C{i}", alpha=0.3)
            left.plot(*zip(*front, strict=True), "o-", color=f"C{i}", label=learner, markersize=4)
            for column, marker, shift in (("true", "o", -0.2), ("test_wis", "x", 0.0), ("test_fqe", "^", 0.2)):
                one = found["selected"][learner][column]
                bars = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
                label = {"true": "true value", "test_wis": "WIS", "test_fqe": "FQE"}[column] if i == 0 else None
                right.errorbar([i + shift], [one["value"]], bars, fmt=marker, color=f"C{i}", label=label)
        for axes in (left, right):
            axes.axhline(exact["behaviour"], color="grey", linestyle=":")
            axes.axhline(exact["optimal"], color="grey", linestyle="--")
        left.set(
            title=f"{name}: fronts over thresholds, all datasets", xlabel="ESS", ylabel="WIS (validation)", xscale="log"
        )
        right.set(title="selected by WIS (test); behaviour dotted, optimal dashed", ylabel="value")
        right.set_xticks(range(len(found["selected"])), list(found["selected"]), fontsize=7)
        for axes in (left, right):
            axes.legend(fontsize=7)
    figure.savefig(folder / "figures" / "sepsis.png", dpi=100)
    plt.close(figure)


JOB = Job(
    name="rl.adrl_sepsis",
    summary="BC, BCQ, BCQf and AD-BCQ on ICU-Sepsis and a sepsis simulator: true values beside WIS, ESS and FQE",
    Config=Config,
    run=run,
    presets={
        "smoke": {"datasets": 2, "episodes": 300, "thresholds": (0.01, 0.3), "updates": 100, "min_ess": 10.0},
        "two-cores": {"thresholds": (0.01, 0.1, 0.3, 0.75), "updates": 1000, "polyak": 0.01},
        "paper": {},
    },
    draw=draw,
)
